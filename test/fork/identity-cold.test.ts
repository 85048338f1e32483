import { identitySuite } from './identity.js';

const identity = identitySuite(true);

identity.run();
