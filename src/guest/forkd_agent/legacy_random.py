"""numpy's legacy generator, the one behind numpy.random.rand() and its kind."""
import os
from typing import Any, Optional

KEY_WORDS = 624
STATE_BYTES = (KEY_WORDS + 1) * 4


class LegacyRandom:
    """Gives the generator a new state from the kernel.

    numpy.random.seed() takes a third of a millisecond in an emulated guest, most of it for mixing a short seed into 624 words.
    A Mersenne Twister may as well start from any 624 random words, and numpy tells where they are (the `state_address` of
    a bit generator: 624 words and the position, numpy/random/src/mt19937/mt19937.h). A numpy that looks otherwise is seeded
    the slow way.
    """

    def __init__(self, numpy: Any) -> None:
        self._numpy = numpy
        self._state: Optional[Any] = None
        try:
            self._legacy = numpy.random.mtrand._rand
            self._generator = self._legacy._bit_generator
            self._state = self._find_state()
        except Exception:
            self._state = None

    def _find_state(self) -> Optional[Any]:
        legacy, generator = self._legacy, self._generator
        if type(generator).__name__ != 'MT19937':
            return None
        place = {'data': (generator.ctypes.state_address, False), 'shape': (KEY_WORDS + 1,), 'typestr': '<u4', 'version': 3}
        words = self._numpy.asarray(type('Words', (), {'__array_interface__': place})())
        known = generator.state['state']
        if not (words[:KEY_WORDS] == known['key']).all() or words[KEY_WORDS] != known['pos']:
            return None
        return words

    @property
    def address(self) -> Optional[int]:
        """Where the words lie, for whoever fills them without numpy; None when it must not be done so."""
        return None if self._state is None or self._replaced() else self._generator.ctypes.state_address

    def _replaced(self) -> bool:
        # The user may have put another generator in its place (numpy.random.set_state cannot, set_bit_generator can).
        return self._legacy._bit_generator is not self._generator

    def reseed(self) -> None:
        numpy = self._numpy
        forget_pair = getattr(self._legacy, '_initialize_bit_generator', None)
        # Before numpy 1.25 nothing else forgets the second half of the parent's last pair of normal deviates.
        if self._state is None or self._replaced() or forget_pair is None:
            numpy.random.seed(numpy.frombuffer(os.urandom(16), 'u4'))
            return
        words = numpy.frombuffer(os.urandom(STATE_BYTES), 'u4')
        self._state[:] = words
        # All words are used up: the next number makes new ones.
        self._state[KEY_WORDS] = KEY_WORDS
        forget_pair(self._generator)

    def forget_pair(self) -> None:
        """The second half of the last pair of normal deviates, ahead of time: what is left to a copy are the words."""
        name, key, position, has_pair, _pair = self._legacy.get_state()
        if has_pair:
            self._legacy.set_state((name, key, position, 0, 0.0))
