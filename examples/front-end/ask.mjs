// Asks a server with one of the clients, and prints what arrived: `node ask.mjs ai-sdk URL OPTIONS_AS_JSON`.
const [client, url, options = "{}"] = process.argv.slice(2);
const { ask } = await import(`./${client}.mjs`);
const found = await ask(url, JSON.parse(options));
console.log(JSON.stringify({ ...found, error: found.error && { status: found.error.statusCode ?? found.error.status ?? null, message: String(found.error.message ?? found.error) } }));
