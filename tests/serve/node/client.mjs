// One step of what applications do with OpenAI's client, told as JSON on stdout.
//
//     OPENAI_BASE_URL=... OPENAI_API_KEY=... node client.mjs STEP '{"model": ..., "picture": ...}'
import OpenAI from 'openai';
import { zodResponseFormat } from 'openai/helpers/zod';
import { z } from 'zod';

const [step, given] = process.argv.slice(2);
const { model, picture } = JSON.parse(given);
const client = new OpenAI({ maxRetries: 0 });

const messages = [
  {
    role: 'user',
    content: [
      { type: 'image_url', image_url: { url: picture } },
      { type: 'text', text: 'What is in the picture?' },
    ],
  },
];
const question = { model, messages, max_tokens: 6 };

const steps = {
  async models() {
    const page = await client.models.list();
    const one = await client.models.retrieve(model);
    return { ids: page.data.map((entry) => entry.id), one: one.id };
  },

  async chat() {
    const answer = await client.chat.completions.create({ ...question, logprobs: true });
    const [choice] = answer.choices;
    return {
      text: choice.message.content,
      finish_reason: choice.finish_reason,
      logprobs: choice.logprobs.content.map((entry) => entry.logprob),
      usage: answer.usage,
      edgevlm: answer.edgevlm,
    };
  },

  async stream() {
    const stream = await client.chat.completions.create({
      ...question,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = '';
    let last;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? '';
      last = chunk;
    }
    return { text, usage: last.usage };
  },

  async schema() {
    const shape = z.object({ colour: z.enum(['red', 'green']), sharp: z.boolean() });
    const answer = await client.chat.completions.parse({
      ...question,
      max_tokens: 60,
      response_format: zodResponseFormat(shape, 'seen'),
    });
    return answer.choices[0].message.parsed;
  },

  async errors() {
    const wrong = new OpenAI({ maxRetries: 0, apiKey: 'sk-not-this-one-at-all' });
    return [
      await failure(() => wrong.models.list()),
      await failure(() => client.chat.completions.create({ ...question, model: 'gpt-4o' })),
      await failure(() => client.chat.completions.create({ ...question, temperature: -1 })),
    ];
  },

  // The answer is far from its end when its reader leaves.
  async abort() {
    const stream = await client.chat.completions.create({
      ...question,
      max_tokens: 4000,
      stream: true,
    });
    for await (const _ of stream) break;
    return { aborted: stream.controller.signal.aborted };
  },
};

async function failure(call) {
  try {
    await call();
  } catch (error) {
    const { status, code, param, message } = error;
    return { kind: error.constructor.name, status, code, param, message };
  }
  return { kind: 'none' };
}

console.log(JSON.stringify(await steps[step]()));
