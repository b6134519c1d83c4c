// @ts-check
/** A client of the bus for browsers: one WebSocket that heals itself, in one file without dependencies.
 *     const bus = new EventBusClient();
 *     await bus.publish("chat.lobby", { text: "Hello" });
 *     for await (const event of bus.subscribe("chat.*", { after: 0 })) console.log(event.seq, event.payload);
 * It speaks `eventbus.v1`: names are the protocol's, durations are seconds. A subscription resumes after the last event
 * that the page has *taken*: no hole, no double. A publish without an answer is sent again and, by its id, stored once.
 * @typedef {(how?: {delay?: number, reason?: string}) => Promise<void>} Settle  Only events of groups have it.
 * @typedef {{seq: number, message_id: string, topic: string, payload?: any, payload_base64?: string, key?: string,
 *   metadata: Record<string, any>, attempt?: number, ack?: Settle, nack?: Settle, reject?: Settle, extend?: Settle}} BusEvent
 * @typedef {{first_seq: number, last_seq: number, reason: string}} Gap  Events that will not come.
 * @typedef {{seq: number | null, message_id: string, duplicate: boolean}} Receipt
 * @typedef {{message_id?: string, key?: string, metadata?: Record<string, any>, content_type?: string, ttl?: number,
 *   delay?: number, tags?: string[], unique?: object, durable?: boolean}} PublishOptions
 * @typedef {{after?: number, epoch?: string, from?: number | string, include_processed?: boolean, overflow?: string,
 *   buffer?: number, group?: string, credit?: number, ack_wait?: number, max_attempts?: number,
 *   on_gap?: (gap: Gap) => void}} SubscribeOptions  Without `on_gap` a gap ends the loop as an error.
 * @typedef {Partial<typeof DEFAULTS> & {url?: string | URL, WebSocket?: any,
 *   token?: string | (() => string | Promise<string>)}} ClientOptions
 */
const DEFAULTS = {
  window: 256, // events of one subscription that are on their way or wait to be taken
  max_pending: 1000, // requests that are not answered, and their bytes: then no publish is taken any more
  max_pending_bytes: 8 * 1024 * 1024,
  reconnect_interval: 0.5, // longest pause before the first attempt to come back; it doubles with each
  max_reconnect_interval: 30,
  open_timeout: 10, // how long a token may take, and then the connection
  close_timeout: 5, // how long `close()` waits for answers
};

/** An error, of the server or of this client, with a stable `code`. */
export class EventBusError extends Error {
  constructor(/** @type {any} */ error) {
    super(String(error.message));
    this.name = "EventBusError";
    this.code = String(error.code);
    this.status = Number(error.status) || undefined;
    this.retry = error.retry === true;
    this.retry_after = clamp(error.retry_after, 60);
    /** @type {Gap | undefined} */ this.gap = error.gap; // of "log.gap"
  }
}
const fault = (/** @type {string} */ code, /** @type {string} */ message) => new EventBusError({ code, message });
const clamp = (/** @type {any} */ seconds, /** @type {number} */ most) => Math.min(Math.max(Number(seconds) || 0, 0), most);
const is_seq = (/** @type {any} */ value) => Number.isSafeInteger(value) && value >= 0;
/** Make a UUID of version 4; `crypto.randomUUID` is missing where a page has no TLS. */
function uuid() {
  const hex = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4}).(.{3}).(.{3})/, "$1-$2-4$3-a$4-");
}

/** A subscription: `for await` gives its events, and leaving the loop ends it. To the client it is a request that stays
 * among those without an answer, and so begins again on each connection. */
export class Subscription {
  is_closed = false;
  /** @type {EventBusError | undefined} */ error = undefined; // why; undefined where the page has closed it
  /** @type {any[]} */ _items = []; // what has arrived and is not taken: "event", "gap" and "caught_up"
  _wake = () => {}; // lets the loop look again
  _is_sent = false; // on this connection, as for every request; so are the next three
  _start = 0; // where it began
  _received = 0; // seq of the last event that came
  _taken = 0; // events for which the server has got no new credit yet
  /** @param {EventBusClient} client @param {number} id @param {string[]} patterns @param {SubscribeOptions} options */
  constructor(client, id, patterns, { on_gap, after, epoch, ...options }) {
    this.position = after; // seq of the last event taken, to resume from; undefined until the server has said where
    this.epoch = epoch; // the log that it belongs to
    this.group = options.group;
    this._id = id;
    this._client = client;
    this._on_gap = on_gap;
    /** @type {any} */ this._frame = { type: "subscribe", id, sub: id, patterns, ...options };
    /** When the server has confirmed it for the first time; rejects if it ends before. @type {Promise<void>} */
    this.ready = new Promise((resolve, reject) => (this._ready = { resolve, reject }));
    this.ready.catch(() => {}); // seen, though perhaps nobody waits for it
  }
  async *[Symbol.asyncIterator]() {
    try {
      while (this._items.length > 0 || !this.is_closed) {
        const { type, sub, ...item } = this._items.shift() ?? {};
        if (type) this._pass(type, item);
        else await new Promise((resolve) => (this._wake = () => resolve(undefined)));
        if (type === "event") yield item;
      }
      if (this.error) throw this.error;
    } finally {
      this.close();
    }
  }
  /** End it. What a member of a group has not settled goes to others. */
  close() {
    this._items = [];
    if (this._is_sent) this._client._send({ type: "unsubscribe", sub: this._id, id: 0 });
    this._reject();
  }
  _text() {
    [this._items, this._taken] = [[], 0]; // what was not taken comes again
    const place = { after: this.position, epoch: this.epoch, credit: this._client._options.window };
    return JSON.stringify(this.group === undefined ? { ...this._frame, ...place } : this._frame);
  }
  _resolve(/** @type {any} */ { after, processed_before }, /** @type {string} */ epoch) {
    this._ready?.resolve(undefined);
    if (this.group !== undefined) return;
    if (!is_seq(after)) throw new TypeError("no seq to begin after");
    if (epoch !== this.epoch || !this._frame.processed_before) this._frame.processed_before = processed_before;
    this._start = this._received = after;
    this.position ??= after;
    this.epoch ??= epoch;
    delete this._frame.from;
  }
  _reject(/** @type {EventBusError | undefined} */ error = undefined) {
    if (this.is_closed) return;
    [this.is_closed, this.error] = [true, error];
    this._client._requests.delete(this._id);
    this._client._suspend(this);
    this._ready?.reject(error ?? fault("subscription.closed", "the subscription was closed"));
    this._wake();
  }
  _receive(/** @type {any} */ frame) {
    const { type, topic, seq, first_seq, last_seq, attempt = 0 } = frame;
    if (type === "lost") return this._lose(new Set(frame.seqs));
    const is_usable = (type === "gap" ? [first_seq, last_seq] : [seq, attempt]).every(is_seq);
    if (!this._is_sent || !is_usable || (type === "event" && typeof topic !== "string")) throw new TypeError(type);
    if (type === "event") {
      if (this.group !== undefined) this._add_settlement(frame);
      else if (seq > 0 && seq <= this._received) return; // a double
      this._received = seq || this._received;
    } else if (type === "caught_up" && this._items.at(-1)?.type === type) this._items.pop();
    if (this._items.push(frame) > 20_000) throw new TypeError("a subscription got more events than any credit allows");
    this._wake();
  }
  /** Move on past an event, a gap, or the end of a catch-up. */
  _pass(/** @type {string} */ type, /** @type {any} */ item) {
    const passed = Math.max(this.position ?? 0, item.seq ?? item.last_seq);
    this.position = item.reason === "epoch" ? this._start : passed; // epoch: another log
    this.epoch = this._client._welcome.epoch;
    if (type === "gap") {
      const message = `events ${item.first_seq} to ${item.last_seq} are not available (${item.reason})`;
      if (!this._on_gap) throw new EventBusError({ code: "log.gap", message, gap: item });
      this._on_gap(item);
    } else if (type === "event" && this.group === undefined && ++this._taken >= this._client._options.window / 2) {
      this._client._send({ type: "credit", sub: this._id, credit: this._taken, id: 0 });
      this._taken = 0;
    }
  }
  /** Others have these events now. Those that wait here are named: until then they count against the credit. */
  _lose(/** @type {Set<number>} */ seqs) {
    for (const item of this._items) if (seqs.has(item.seq)) item.nack().catch(() => {});
    this._items = this._items.filter((item) => !seqs.has(item.seq));
  }
  /** Give an event of a group the functions that settle it; the first ack, nack or reject counts. */
  _add_settlement(/** @type {any} */ event) {
    const [socket, { sub, seq, attempt }] = [this._client._socket, event];
    const ask = async (/** @type {string} */ type, how = {}) => {
      if (!this._is_sent || socket !== this._client._socket) throw fault("lease.lost", "its connection has ended");
      await this._client._ask({ type, sub, seq, attempt, ...how });
    };
    /** @type {Promise<void> | undefined} */ let settled;
    for (const type of ["ack", "nack", "reject"]) event[type] = (/** @type {any} */ how) => (settled ??= ask(type, how));
    event.extend = () => ask("extend");
  }
}

/** The client. It connects when it is first used and keeps trying; what is asked for waits meanwhile. `state` is "idle",
 * "connecting", "open", "waiting" (for the next attempt) or "closed"; an event "state" tells of each change. */
export class EventBusClient extends EventTarget {
  state = "idle";
  /** @type {EventBusError | undefined} */ error = undefined; // why it is closed; undefined where the page has closed it
  /** @type {Map<number, any>} */ _requests = new Map(); // by id: what waits for an answer, and subscriptions
  /** @type {Record<string, any>} */ _timers = {}; // of this connection, or of the pause before the next
  /** @type {any} */ _socket = undefined;
  /** @type {any} */ _welcome = undefined; // what the last server said first
  /** @type {any} */ _bye = undefined; // what this one said before it closes
  _last_id = 0;
  _sent_at = 0;
  _wave = 0; // 0 or 1, in each publish: another one after a refusal, so that the server knows what was on its way
  _refusals = 0; // for the moment, since the last answer
  _endings = 0; // since the last steady connection
  constructor(/** @type {ClientOptions} */ { url = new URL("ws", import.meta.url), ...options } = {}) {
    super();
    this.url = String(url).replace(/^http/, "ws"); // by default beside this file
    this._options = { WebSocket: globalThis.WebSocket, ...DEFAULTS, ...options };
    this._online = () => this.state === "waiting" && this._later("dial", 0, () => this._dial());
    globalThis.addEventListener?.("online", this._online);
  }
  /** Resolve when a connection is open; reject if there will be none. */
  async connect() {
    while (this._wish() !== "open") await new Promise((done) => this.addEventListener("state", done, { once: true }));
  }
  /** Publish an event; resolves when the server has stored it. It rejects only if the server refuses it, if too many
   * wait, or if the client is closed. With `durable: false` it reaches those who listen now, and is not stored.
   * @param {string} topic @param {any} payload @param {PublishOptions} [options] @returns {Promise<Receipt>} */
  async publish(topic, payload, options = {}) {
    this._wish();
    const sizes = [...this._requests.values()].flatMap(({ _bytes }) => _bytes ?? []);
    const bytes = sizes.reduce((sum, size) => sum + size, 0);
    const is_full = sizes.length >= this._options.max_pending || bytes >= this._options.max_pending_bytes;
    if (is_full) throw fault("client.buffer_full", `${sizes.length} requests (${bytes} bytes) wait for an answer already`);
    const data = { topic, payload: payload ?? null, message_id: uuid(), ...options };
    const { seq, message_id, duplicate } = await this._ask({ type: "publish", wave: 0, data });
    return { seq, message_id, duplicate };
  }
  /** Subscribe to what matches a pattern, or one of several, until the loop over it is left or it is closed. */
  subscribe(/** @type {string | string[]} */ patterns, /** @type {SubscribeOptions} */ options = {}) {
    this._wish();
    const subscription = new Subscription(this, ++this._last_id, [patterns].flat(), options);
    this._pump(subscription);
    return subscription;
  }
  /** The same with a callback, which is awaited before the next event; by default a gap is a warning. An event of a
   * group is acked after its call, and nacked if that throws.
   * @param {string | string[]} patterns @param {(event: any) => unknown} callback @param {SubscribeOptions} [options] */
  on(patterns, callback, options = {}) {
    const on_gap = (/** @type {Gap} */ gap) => console.warn("eventbus: events will not come:", gap);
    const subscription = this.subscribe(patterns, { on_gap, ...options });
    this._run(subscription, callback).catch((error) => console.error("eventbus: a subscription has ended:", error));
    return subscription;
  }
  async _run(/** @type {Subscription} */ subscription, /** @type {(event: any) => unknown} */ callback) {
    const { group, _id: sub, _frame: { ack_wait = 30 } } = subscription;
    const extend = { type: "extend", sub, up_to: Number.MAX_SAFE_INTEGER, id: 0 }; // all that it holds
    const timer = setInterval(() => group !== undefined && subscription._is_sent && this._send(extend), ack_wait * 333);
    try {
      for await (const event of subscription) {
        try {
          await callback(event);
          event.ack?.().catch((/** @type {Error} */ error) => console.warn("eventbus:", error.message));
        } catch (error) {
          console.error("eventbus: a callback failed at seq", event.seq, error);
          event.nack?.({ reason: String(error).slice(0, 500) }).catch(() => {});
        }
      }
    } finally {
      clearInterval(timer);
    }
  }
  /** End it: subscriptions at once, requests when they are answered or `close_timeout` is over. */
  async close() {
    for (const request of this._requests.values()) request.close?.();
    const over = performance.now() + this._options.close_timeout * 1000;
    const is_waiting = () => this.state === "open" && this._requests.size > 0 && performance.now() < over;
    while (is_waiting()) await new Promise((resolve) => setTimeout(resolve, 10));
    this._stop();
  }
  _wish() {
    if (this.state === "idle") this._dial();
    if (this.state === "closed") throw this.error ?? fault("client.closed", "the client was closed");
    return this.state;
  }
  async _dial() {
    this._become("connecting");
    const token = await this._token().catch((error) => this._on_end(1006, `there is no token: ${error}`));
    if (this.state !== "connecting") return;
    // A token in a frame: of a handshake that was refused a browser does not tell why.
    const url = token ? `${this.url}${this.url.includes("?") ? "&" : "?"}auth=frame` : this.url;
    try {
      this._socket = new this._options.WebSocket(url, ["eventbus.v1"]);
    } catch (error) {
      return this._stop(fault("client.refused", String(error))); // a URL that is none
    }
    const socket = this._socket;
    socket.onopen = () => token && socket.send(JSON.stringify({ type: "auth", token, id: -1 }));
    socket.onmessage = (/** @type {any} */ { data }) => socket === this._socket && this._on_text(data);
    socket.onclose = (/** @type {any} */ { code, reason }) => socket === this._socket && this._on_end(code, reason);
    this._watch(this._options.open_timeout);
  }
  /** Return a token, or reject if none comes in time. @returns {Promise<string | void>} */
  async _token() {
    const { token, open_timeout } = this._options;
    if (typeof token !== "function") return token;
    return Promise.race([token(), new Promise((_, reject) => setTimeout(reject, 1000 * open_timeout, "none in time"))]);
  }
  /** Show another token before the present one has expired in so many seconds. */
  _renew(/** @type {number} */ seconds) {
    if (typeof this._options.token !== "function") return;
    const wait = Math.max(clamp(seconds * 0.75, 86_400), 1);
    const show = (/** @type {string | void} */ token) => this._send({ type: "auth", token, id: -1 });
    this._later("renew", wait, () => this._token().then(show, () => this._renew(seconds - wait)));
  }
  /** Drop the connection if nothing more is heard for so many seconds. */
  _watch(/** @type {number} */ limit) {
    const drop = () => this._on_end(1006, "the server was silent for too long");
    this._later("watch", limit, () => this._later("watch", limit / 10, drop)); // twice: perhaps it was the page that slept
  }
  _on_end(/** @type {number} */ code, /** @type {string} */ reason) {
    if (this.state === "closed") return;
    const { error, after, reconnect = code < 4400 || code >= 4500 } = this._bye ?? {};
    this._disconnect(4000); // without waiting until the other side has closed as well: a browser does that for long
    if (!reconnect || (error?.code === "auth.expired" && typeof this._options.token !== "function")) {
      return this._stop(error ? new EventBusError(error) : fault("client.refused", `closed: ${code} ${reason}`));
    }
    const pause = clamp(after, this._options.max_reconnect_interval) + this._jitter(this._endings++);
    this._later("dial", pause, () => this._dial());
    this._become("waiting", { code, reason, pause });
  }
  /** What was published and not answered is sent again on the next connection; the rest is over. */
  _disconnect(/** @type {number} */ code) {
    Object.values(this._timers).forEach(clearTimeout);
    this._socket?.close(code);
    [this._timers, this._socket, this._bye] = [{}, undefined, undefined];
    const lost = fault("client.connection_lost", "the connection was lost before the server answered");
    this._reject(lost, ({ is_once, _is_sent }) => is_once && _is_sent);
    for (const request of this._requests.values()) this._suspend(request);
  }
  _stop(/** @type {EventBusError | undefined} */ error = undefined) {
    if (this.state === "closed") return;
    this._disconnect(1000);
    globalThis.removeEventListener?.("online", this._online);
    this.error = error;
    this._become("closed");
    this._reject(error ?? fault("client.closed", "the client was closed"));
  }
  _become(/** @type {string} */ state, detail = {}) {
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, error: this.error, ...detail } }));
  }
  /** Do something in so many seconds, unless the connection ends before. */
  _later(/** @type {string} */ what, /** @type {number} */ seconds, /** @type {() => void} */ act) {
    clearTimeout(this._timers[what]);
    this._timers[what] = setTimeout(() => (delete this._timers[what], act()), 1000 * seconds);
  }
  _jitter(/** @type {number} */ attempt) {
    const { reconnect_interval, max_reconnect_interval } = this._options;
    return Math.random() * Math.min(max_reconnect_interval, reconnect_interval * 2 ** Math.min(attempt, 30));
  }
  /** Send a frame now or later; resolves when the server has answered. @returns {Promise<any>} */
  _ask(/** @type {any} */ frame) {
    const text = JSON.stringify({ ...frame, id: ++this._last_id });
    const _bytes = new TextEncoder().encode(text).length;
    const is_once = frame.type !== "publish" || frame.data.durable === false; // never sent twice
    const [_id, _text] = [this._last_id, () => text.replace('"wave":0', `"wave":${this._wave}`)]; // where it has one
    return new Promise((_resolve, _reject) => this._pump({ _id, _text, _bytes, is_once, _resolve, _reject }));
  }
  /** Send what waits, in order, and this request behind it. */
  _pump(/** @type {any} */ request = undefined) {
    if (request) this._requests.set(request._id, request);
    if (this.state !== "open" || "hold" in this._timers) return;
    const limit = this._welcome.limits?.max_frame ?? Infinity;
    this._reject(fault("frame.too_large", `a frame may have ${limit} bytes`), ({ _bytes }) => _bytes > limit);
    for (const each of this._requests.values()) if (!each._is_sent) this._send(each._text());
    for (const each of this._requests.values()) each._is_sent = true;
  }
  /** Go on after a refusal, when all that is on its way is answered: it may have to be sent again before the rest. */
  _go_on() {
    const is_on_its_way = (/** @type {any} */ { _bytes, _is_sent }) => _bytes && _is_sent;
    if ([...this._requests.values()].some(is_on_its_way)) return this._later("hold", 0.05, () => this._go_on());
    this._wave = 1 - this._wave;
    this._pump();
  }
  _suspend(/** @type {any} */ request) {
    request._is_sent = false;
    if (request.group !== undefined) request._items = []; // what a member of a group holds is for others now
  }
  _reject(/** @type {EventBusError} */ error, concerns = (/** @type {any} */ request) => true) {
    for (const each of this._requests.values()) if (concerns(each) && this._requests.delete(each._id)) each._reject(error);
  }
  _send(/** @type {object | string} */ frame) {
    if (this.state !== "open") return;
    this._sent_at = performance.now();
    this._socket.send(typeof frame === "string" ? frame : JSON.stringify(frame));
  }
  _on_text(/** @type {string} */ text) {
    try {
      for (const frame of [JSON.parse(text)].flat()) if (this._socket) this._on_frame(frame);
    } catch (error) {
      return this._on_end(1006, `the server sent a frame that cannot be used: ${error}`); // with what was lost by that
    }
    if (this.state === "open") this._watch(2.5 * this._welcome.heartbeat);
    // Whatever comes is the occasion to say that this side lives: browsers hold back the timers of a hidden page.
    if (performance.now() - this._sent_at >= this._welcome?.heartbeat * 1000) this._send({ type: "ping" });
  }
  _on_frame(/** @type {any} */ frame) {
    const { type, sub, heartbeat } = frame;
    const is_welcome = type === "welcome" && this.state !== "open" && heartbeat > 0 && heartbeat < 86_400;
    if (type === "bye") this._bye = frame;
    else if (is_welcome) this._on_welcome(frame);
    else if (typeof type !== "string" || this.state !== "open" || type === "welcome") throw new TypeError(`a ${type} now`);
    else if (["ok", "error", "closed"].includes(type)) this._on_answer(frame, this._requests.get(frame.id ?? sub));
    else if (["event", "gap", "caught_up", "lost"].includes(type)) this._requests.get(sub)?._receive?.(frame);
  }
  _on_welcome(/** @type {any} */ welcome) {
    [this._welcome, this.state, this._sent_at] = [welcome, "open", performance.now()];
    this._later("steady", 5, () => (this._endings = 0)); // the next pause is short again
    this._pump();
    this._become("open");
  }
  _on_answer(/** @type {any} */ answer, /** @type {any} */ request) {
    if (typeof answer.expires_in === "number") this._renew(answer.expires_in);
    if (answer.type === "ok") {
      this._refusals = 0;
      if (request?._bytes) this._requests.delete(request._id);
      return request?._resolve(answer, this._welcome.epoch);
    }
    const error = new EventBusError(answer.error);
    if (!request) return answer.id === 0 || console.warn("eventbus: the server reported", error.code, error.message);
    if (!error.retry) return this._reject(error, (each) => each === request);
    this._suspend(request); // and nothing more is sent for now, so that the order stays
    this._later("hold", error.retry_after + this._jitter(this._refusals++), () => this._go_on());
  }
}
