// Node's ws: /echo sends back what it is sent, /fan sends it to all.
const { createServer } = require("node:http");
const { WebSocketServer } = require("ws");

const echo = new WebSocketServer({ noServer: true, perMessageDeflate: false });
const fan = new WebSocketServer({ noServer: true, perMessageDeflate: false });
echo.on("connection", (socket) => {
  socket.on("message", (data) => socket.send(data, { binary: false }));
});
fan.on("connection", (socket) => {
  socket.on("message", (data) => {
    for (const each of fan.clients) each.send(data, { binary: false });
  });
});
const server = createServer();
server.on("upgrade", (request, socket, head) => {
  const to = request.url === "/fan" ? fan : echo;
  to.handleUpgrade(request, socket, head, (opened) => to.emit("connection", opened));
});
const version = `${require("ws/package.json").version}, Node ${process.versions.node}`;
server.listen(Number(process.argv[2]), "127.0.0.1", 4096, () => console.log(version));
