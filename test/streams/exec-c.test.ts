import { streamSuite } from './streams.js';

const exec = streamSuite('c');

exec.run();
