// What a judge's service is asked: answers, errors of its one shape, server-sent events.

export class ServerError extends Error {
  constructor(message, kind) {
    super(message);
    this.kind = kind;
  }
}

export class Server {
  // `address` is empty for the service that this page came from. `key` gives the key of the moment:
  // it is kept in its field and nowhere else.
  constructor(address, key) {
    this.base = address ? address.replace(/\/*$/, "/") : document.baseURI;
    this.key = key;
    this.name = address ? new URL(this.base).host : "this service";
  }

  async ask(path, { body, signal } = {}) {
    const headers = {};
    if (body) headers["content-type"] = "application/json";
    if (this.key()) headers.authorization = `Bearer ${this.key()}`;
    const method = body ? "POST" : "GET";
    let reply;
    try {
      reply = await fetch(new URL(path, this.base), {
        method, headers, signal, body: body && JSON.stringify(body), credentials: "omit",
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ServerError(
        `${this.name} gives no answer: it is not there, or it does not name this page in ` +
        "serve.allowed_origins", "unreachable");
    }
    if (reply.ok) return reply;
    const text = await reply.text();
    let error = {};
    try {
      error = JSON.parse(text).error ?? {};
    } catch { /* of a proxy in between, which has another shape */ }
    throw new ServerError(error.message ?? `${reply.status} ${text.slice(0, 200)}`, error.type);
  }

  async json(path, options) {
    return (await this.ask(path, options)).json();
  }

  // Yields [name, data] of each event; an event `error` is thrown.
  async *events(path, options) {
    const reply = await this.ask(path, options);
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    try {
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const blocks = (rest + value).split("\n\n");
        rest = blocks.pop();
        for (const block of blocks) {
          const fields = Object.fromEntries(block.split("\n").map(row => {
            const colon = row.indexOf(": ");
            return [row.slice(0, colon), row.slice(colon + 2)];
          }));
          const data = JSON.parse(fields.data);
          if (fields.event === "error") throw new ServerError(data.error.message, data.error.type);
          yield [fields.event, data];
        }
      }
    } finally {
      reader.cancel().catch(() => {}); // has ended, or the caller has left
    }
  }
}
