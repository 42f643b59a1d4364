// What npm @ag-ui/client says of streams: a line of JSON in, a line of JSON out.
// argv: the folder that has node_modules.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { join } from "node:path";

const require = createRequire(join(process.argv[2], "package.json"));
const agui = require("@ag-ui/client");
const fromClient = createRequire(require.resolve("@ag-ui/client"));
const { from, lastValueFrom, toArray } = fromClient("rxjs");
console.warn = () => {};

class Agent extends agui.AbstractAgent {
  constructor(events) {
    super({ threadId: "t" });
    this.events = events;
  }
  run() {
    return from(this.events);
  }
}

const done = (stream) => lastValueFrom(stream.pipe(toArray()));

const operations = {
  // The error of each stream, or null.
  async verify(streams) {
    const found = [];
    for (const events of streams) {
      try {
        await done(
          from(events).pipe(agui.transformChunks(), agui.verifyEvents()),
        );
        found.push(null);
      } catch (error) {
        found.push(String(error.message));
      }
    }
    return found;
  },
  // What a client has after it ran each stream: its messages and its state.
  async reduce(streams) {
    const found = [];
    for (const events of streams) {
      const agent = new Agent(events);
      const failed = [];
      await agent.runAgent(
        {},
        { onRunFailed: ({ error }) => failed.push(String(error.message)) },
      ).catch((error) => failed.push(String(error.message)));
      found.push({ messages: agent.messages, state: agent.state, failed });
    }
    return found;
  },
  async compact(streams) {
    return streams.map((events) => agui.compactEvents(events));
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const [operation, argument] = JSON.parse(line);
  let answer;
  try {
    answer = { value: await operations[operation](argument) };
  } catch (error) {
    answer = { error: String(error.stack) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
