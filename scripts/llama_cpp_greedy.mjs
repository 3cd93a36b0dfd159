// Greedy tokens of a GGUF by llama.cpp: node llama_cpp_greedy.mjs MODEL.gguf PROMPT TOKENS [LORA.gguf]
//
// Prints JSON: the text after each token, and how far the best logit stood from the second.
import { getLlama, LlamaLogLevel } from "node-llama-cpp";

const [file, prompt, count, lora] = process.argv.slice(2);
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath: file });
const context = await model.createContext({
  contextSize: 512,
  // Threads that wait for each other spin: on a busy machine one is fastest.
  threads: 1,
  ...(lora ? { lora: { adapters: [{ filePath: lora, scale: 1 }] } } : {}),
});
const sequence = context.getSequence();
const promptTokens = model.tokenize(prompt);
let input = promptTokens;
const tokens = [];
const gaps = [];
for (let n = 0; n < Number(count); n++) {
  const items = input.map((token, place) =>
    place + 1 < input.length
      ? token
      : [token, { generateNext: { probabilities: true, options: { temperature: 0 } } }],
  );
  const results = await sequence.controlledEvaluate(items);
  const probabilities = results[input.length - 1].next.probabilities;
  const [[best, first], [, second]] = [...probabilities.entries()].slice(0, 2);
  gaps.push(Math.log(first / second));
  tokens.push(best);
  if (model.isEogToken(best)) break;
  input = [best];
}
const texts = tokens.map((_, place) => model.detokenize(tokens.slice(0, place + 1)));
console.log(JSON.stringify({ promptTokens, tokens, gaps, texts }));
await llama.dispose();
process.exit(0);
