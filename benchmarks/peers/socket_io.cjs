// Socket.IO: the event "echo" goes back to its sender, "fan" to all.
const { createServer } = require("node:http");
const { Server } = require("socket.io");

const server = createServer();
const io = new Server(server, { pingInterval: 300000, transports: ["websocket"] });
io.on("connection", (socket) => {
  socket.on("echo", (data) => socket.emit("echo", data));
  socket.on("fan", (data) => io.emit("fan", data));
});
const own = require("socket.io/package.json").version;
const version = `${own}, Node ${process.versions.node}`;
server.listen(Number(process.argv[2]), "127.0.0.1", 4096, () => console.log(version));
