import { identitySuite } from './identity.js';

const identity = identitySuite(false);

identity.run();
