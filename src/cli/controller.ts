#!/usr/bin/env node
/** `forkd-controller serve` is `forkd daemon`: the reference's name for it. */
if (process.argv[2] === 'serve') process.argv[2] = 'daemon';
await import('./main.js');
export {};
