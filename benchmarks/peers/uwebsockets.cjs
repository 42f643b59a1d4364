// uWebSockets.js: /echo sends back what it is sent, /fan sends it to all.
const { App } = require("uWebSockets.js");

const behavior = { compression: 0, idleTimeout: 0, maxBackpressure: 64 * 1024 * 1024 };
App()
  .ws("/echo", { ...behavior, message: (ws, data) => ws.send(data) })
  .ws("/fan", {
    ...behavior,
    open: (ws) => ws.subscribe("fan"),
    message: (ws, data) => {
      ws.publish("fan", data);
      ws.send(data);
    },
  })
  .listen("127.0.0.1", Number(process.argv[2]), () => {
    console.log(`v20.52.0, Node ${process.versions.node}`);
  });
