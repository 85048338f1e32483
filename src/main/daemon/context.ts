/** What the routes share. */
import type { FastifyBaseLogger } from 'fastify';
import type { Engine } from '../engine.js';
import type { Events } from './events.js';
import type { Journal } from './journal.js';
import type { Metrics } from './metrics.js';
import type { Registry } from './registry.js';
import type { Slots } from './slots.js';
import type { Snapshots } from './snapshots.js';
import type { Survivors } from './survivors.js';

export interface Context {
  engine: Engine;
  registry: Registry;
  snapshots: Snapshots;
  survivors: Survivors;
  slots: Slots;
  events: Events;
  journal: Journal;
  metrics: Metrics;
  version: string;
  log: FastifyBaseLogger;
}
