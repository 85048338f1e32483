// Writes docs/reference/errors.md from the catalogue. A test fails when they differ.
import { writeFileSync } from 'node:fs';
import { catalogue } from '../dist/src/contract/errors.js';

const cell = (text) => text.replaceAll('|', '\\|');
const rows = Object.entries(catalogue).map(
  ([code, r]) => `| \`${code}\` | ${r.http} | ${r.exit} | ${cell(r.message)} | ${cell(r.hint)} |`,
);
writeFileSync(
  'docs/reference/errors.md',
  `# Errors

Every error that forkd reports has a stable code, a message, and a hint that says what to do. This page lists the
catalogue, \`src/contract/errors.ts\`; make it anew with \`node tools/errors-page.mjs\`. \`{name}\` stands for a detail of the case.

| code | HTTP | exit | message | hint |
|---|---|---|---|---|
${rows.join('\n')}
`,
);
