import { streamSuite } from './streams.js';

const exec = streamSuite('python');

exec.run();
