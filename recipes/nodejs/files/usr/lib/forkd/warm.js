// Evaluates what the agent sends, one JSON line each, in one context that lives as long as the VM: {id, code} in, {id, result} or
// {id, error, stack} out. A promise is waited for.
const vm = require('node:vm');
const readline = require('node:readline');

Object.assign(globalThis, { require, console });

const evaluate = async ({ id, code }) => {
  try {
    const result = await vm.runInThisContext(code, { filename: 'eval' });
    return { id, result: result === undefined ? null : result };
  } catch (error) {
    const isError = error instanceof Error;
    return {
      id,
      error: isError ? `${error.name}: ${error.message}` : String(error),
      stack: isError ? error.stack : '',
    };
  }
};

const say = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`);

// stdout belongs to the agent; what the code prints goes to the console.
globalThis.console = new console.Console(process.stderr);

const reply = async (line) => {
  const answer = await evaluate(JSON.parse(line));
  try {
    say(answer);
  } catch (error) {
    // A value that JSON does not have.
    say({ id: answer.id, error: `${error.name}: ${error.message}`, stack: error.stack });
  }
};

readline.createInterface({ input: process.stdin }).on('line', (line) => void reply(line));

// Once through all of it, so that children find it compiled.
void evaluate({ id: 0, code: '[1, 2, 3].map((n) => n * n)' }).then(() => say({ ready: true }));
