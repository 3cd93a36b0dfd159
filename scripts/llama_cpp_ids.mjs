// Greedy token ids of a GGUF by llama.cpp: node llama_cpp_ids.mjs MODEL.gguf '[1, 2, 3]' COUNT
//
// Prints JSON: the ids, and the smallest distance of the two best logits on the way.
import { getLlama, LlamaLogLevel } from "node-llama-cpp";

const [file, prompt, count] = process.argv.slice(2);
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath: file });
const context = await model.createContext({ contextSize: 256, threads: 1, flashAttention: false });
const sequence = context.getSequence();
let input = JSON.parse(prompt);
const tokens = [];
let margin = Infinity;
for (let n = 0; n < Number(count); n++) {
  const items = input.map((token, place) =>
    place + 1 < input.length
      ? token
      : [token, { generateNext: { probabilities: true, options: { temperature: 0 } } }],
  );
  const results = await sequence.controlledEvaluate(items);
  const [[best, first], [, second]] = [...results[input.length - 1].next.probabilities.entries()];
  margin = Math.min(margin, Math.log(first / second));
  tokens.push(best);
  input = [best];
}
console.log(JSON.stringify({ tokens, margin }));
await llama.dispose();
process.exit(0);
