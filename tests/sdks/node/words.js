// Without state, on npm `cloudstate` 0.0.3. Streamed requests with one answer are not served by this SDK: its handler of them has a mistake.
const { Stateless } = require("cloudstate");

const words = new Stateless(["shop/words.proto"], "shop.Words", { includeDirs: ["proto"] });

words.commandHandlers = {
  Upper: ({ text }) => ({ text: text.toUpperCase() }),

  Letters: (stream, { text }) => {
    for (const letter of text) stream.write({ text: letter });
    stream.end();
  },

  // Called for every request, with the same stream.
  Echo: (stream, { text }) => {
    if (text === "bye") stream.end();
    else stream.write({ text });
  },
};

words.start({ bindAddress: process.env.HOST, bindPort: Number(process.env.PORT) });
