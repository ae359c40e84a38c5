// Pictures on their way in: chosen, dropped or pasted, then drawn anew before they are sent.

const LONGEST_SIDE = 2048;
const JPEG_QUALITY = 0.9;
// A PNG beyond this is a photograph, which JPEG makes ten times smaller.
const LARGEST_PNG = 2 * 2 ** 20;

/** A picture as it is sent: `{uuid, url, name}` with a data URL of at most 2048 px a side.
 *  Drawing it anew leaves behind what its file told beside the pixels, such as where it was
 *  taken. Throws an Error whose message is for the user. */
export async function readPicture(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    const name = file.name || "That";
    throw new Error(`${name} is not a picture that this browser can open. Use JPEG, PNG or WebP.`);
  }
  const canvas = draw(bitmap);
  bitmap.close();
  const url = await dataUrl(await encode(canvas, file.type));
  return { uuid: randomName(), url, name: file.name || "pasted picture" };
}

function draw(bitmap) {
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d", { alpha: false });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff"; // what the server, too, lays transparent pictures on
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}

async function encode(canvas, type) {
  const as = (kind, quality) => new Promise((done) => canvas.toBlob(done, kind, quality));
  const png = type === "image/png" ? await as("image/png") : null;
  return png && png.size <= LARGEST_PNG ? png : as("image/jpeg", JPEG_QUALITY);
}

function dataUrl(blob) {
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** crypto.randomUUID is for https and this device only; this page is also read over a LAN. */
function randomName() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Calls `add(files)` for what is pasted or dropped anywhere; `overlay` shows while a file is
 *  held above the page. */
export function takePictures(overlay, add) {
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    // A word processor's copy is text, with a picture of it.
    if (!files.length || event.clipboardData.types.includes("text/plain")) return;
    event.preventDefault();
    add(files);
  });
  window.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    overlay.hidden = false;
  });
  window.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) overlay.hidden = true;
  });
  window.addEventListener("drop", (event) => {
    overlay.hidden = true;
    if (!holdsFiles(event)) return;
    event.preventDefault();
    add([...event.dataTransfer.files]);
  });
}
