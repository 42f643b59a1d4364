// npm @ag-ui/client's HttpAgent, as it is: runs once, and says what it has then.
// argv: the folder that has node_modules, the URL, the thread, the run, the message.
import { createRequire } from "node:module";
import { join } from "node:path";

const [tools, url, threadId, runId, content] = process.argv.slice(2);
const require = createRequire(join(tools, "package.json"));
const { HttpAgent } = require("@ag-ui/client");

const agent = new HttpAgent({ url, threadId });
agent.addMessage({ id: `u-${runId}`, role: "user", content });
const events = [];
const failed = [];
await agent
  .runAgent(
    { runId },
    {
      onEvent: ({ event }) => {
        events.push(event);
      },
      onRunFailed: ({ error }) => {
        failed.push(String(error.message));
      },
    },
  )
  .catch((error) => failed.push(String(error.message)));
const found = JSON.stringify({ messages: agent.messages, events, failed });
process.stdout.write(found, () => process.exit(0));
