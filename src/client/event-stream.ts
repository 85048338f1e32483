/** Server-sent events from the bytes of an answer (the HTML standard's `text/event-stream`), as far as the daemon sends them. */

export interface ServerEvent {
  name: string;
  data: string;
}

export async function* serverEvents(parts: AsyncIterable<Uint8Array>): AsyncGenerator<ServerEvent, void> {
  const decoder = new TextDecoder();
  let text = '';
  for await (const part of parts) {
    text += decoder.decode(part, { stream: true });
    const events = text.split('\n\n');
    text = events.pop() ?? '';
    for (const event of events) {
      const [data, names] = ['data: ', 'event: '].map((key) => valuesOf(event, key)) as [string[], string[]];
      if (data.length > 0) yield { name: names[0] ?? 'message', data: data.join('\n') };
    }
  }
}

const valuesOf = (event: string, key: string): string[] =>
  event.split('\n').flatMap((line) => (line.startsWith(key) ? [line.slice(key.length)] : []));

export const textOf = async (parts: AsyncIterable<Uint8Array>): Promise<string> => {
  const all: Uint8Array[] = [];
  for await (const part of parts) all.push(part);
  return Buffer.concat(all).toString('utf8');
};
