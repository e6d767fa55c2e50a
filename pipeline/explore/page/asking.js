// Questions to the server. While one is under way only the latest of those that follow is kept: no answer is ever stale.

async function ask(path, body) {
  const response = await fetch(path, {
    method: body === undefined ? "GET" : "POST",
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const answer = await response.json().catch(() => ({ error: `the explorer failed: ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

export const overview = () => ask("/overview");

/** A channel to one path: `send(body)` asks, `take(answer, body)` gets the answers, in order, the last one always. */
export function channel(path, take, fail) {
  let isBusy = false;
  let waiting = null;
  return async function send(body) {
    waiting = body;
    if (isBusy) return;
    isBusy = true;
    while (waiting !== null) {
      const asked = waiting;
      waiting = null;
      try {
        const answer = await ask(path, asked);
        if (waiting === null || path === "/count") take(answer, asked);
      } catch (error) {
        fail(error);
      }
    }
    isBusy = false;
  };
}
