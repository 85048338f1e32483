// Called by binding.gyp: joins the addon's sources into a few units, which it writes and whose names it prints.
// Each source includes node-addon-api, V8's and the library's headers; reading those was two thirds of the compile time.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** Enough that several processors have something to do to the end, and few enough that headers are read seldom. */
const UNITS = 6;

const root = join(import.meta.dirname, '..');
const sources = readdirSync(join(root, 'src/native'))
  .filter((name) => name.endsWith('.cc'))
  .sort();

mkdirSync(join(root, 'build/units'), { recursive: true });
for (let unit = 0; unit < UNITS; unit++) {
  const own = sources.filter((_, index) => index % UNITS === unit);
  const path = `build/units/unit-${unit}.cc`;
  const file = join(root, path);
  const text = own.map((name) => `#include "../../src/native/${name}"\n`).join('');
  // One that is written anew is compiled anew.
  if (!existsSync(file) || readFileSync(file, 'utf8') !== text) writeFileSync(file, text);
  console.log(path);
}
