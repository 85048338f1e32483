/**
 * Splits a command line: blanks separate, ' and " group, nothing else is special. As the reference does, but that an empty
 * pair of quotes is an empty argument here. Returns undefined when a quote is left open.
 */
export const words = (text: string): string[] | undefined => {
  const found: string[] = [];
  let word: string | undefined;
  let quote = '';
  for (const c of text) {
    if (quote !== '') {
      if (c === quote) quote = '';
      else word += c;
    } else if (c === "'" || c === '"') {
      quote = c;
      word ??= '';
    } else if (/\s/.test(c)) {
      if (word !== undefined) found.push(word);
      word = undefined;
    } else {
      word = (word ?? '') + c;
    }
  }
  if (quote !== '') return undefined;
  return word === undefined ? found : [...found, word];
};
