// Whether the server is there: asked gently, and only while somebody looks.

const PAUSE_MS = 5000;
const PATIENCE_MS = 4000;

/** Calls `changed("ready" | "ending" | "gone")` whenever that changes; the first state is
 *  "ready", since the page has just come from the server. */
export class Watch {
  constructor(changed) {
    this.changed = changed;
    this.state = "ready";
    this.silent = 0;
    this.timer = null;
    document.addEventListener("visibilitychange", () => this.look());
    this.later();
  }

  /** Ask now, as when a request has just failed. */
  async look() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    const state = await this.ask();
    if (state !== this.state) {
      this.state = state;
      this.changed(state);
    }
    this.later();
  }

  async ask() {
    try {
      const response = await fetch("/readyz", {
        cache: "no-store",
        signal: AbortSignal.timeout(PATIENCE_MS),
      });
      this.silent = 0;
      return response.ok ? "ready" : "ending";
    } catch (error) {
      // One slow answer is a busy device; a closed port is not.
      this.silent += 1;
      return error.name === "TimeoutError" && this.silent < 2 ? this.state : "gone";
    }
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.look(), PAUSE_MS);
  }
}
