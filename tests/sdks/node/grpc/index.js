// The module `grpc` that the SDK asks for is native code which no longer builds. This one has the same names on `@grpc/grpc-js`;
// what differs is binding a port: at once there, with a callback here. The port is always given, so its number is known before.
const grpc = require("@grpc/grpc-js");

class Server extends grpc.Server {
  bind(address, credentials) {
    this.bindAsync(address, credentials, (error) => {
      if (error) throw error;
    });
    return Number(address.split(":").pop());
  }

  // Binding starts it.
  start() {}
}

module.exports = { ...grpc, Server };
