#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>

namespace forkd {

// Addresses, or bytes of an image: [begin, end).
struct Range {
  uint64_t begin = 0;
  uint64_t end = 0;
};

// Where an address space shows which bytes of the image.
class Regions {
 public:
  struct Region {
    uint64_t base;
    uint64_t bytes;
    uint64_t offset;  // in the image
  };

  explicit Regions(std::vector<Region> regions = {}) : regions_(std::move(regions)) {}

  bool Empty() const { return regions_.empty(); }
  // An address inside, for asking whether the space still lives.
  uint64_t AnyAddress() const { return regions_.empty() ? uint64_t{1} << 20 : regions_.front().base; }

  // False when the address shows nothing of the image.
  bool ImageOffset(uint64_t address, uint64_t* offset) const;
  // The addresses that show `image`, and the first byte of the image that each shows. A chunk may be shown in
  // part, or more than once.
  struct View {
    Range addresses;
    uint64_t offset;
  };
  std::vector<View> Views(Range image) const;

  void Unmap(Range addresses);
  void Move(Range addresses, uint64_t to);

 private:
  std::vector<Region> regions_;
};

// A set of addresses, as ranges that do not touch.
class RangeSet {
 public:
  void Add(Range range);
  bool Contains(uint64_t address) const;
  // What of `range` is not in the set.
  std::vector<Range> Rest(Range range) const;
  // What of `range` is in it.
  std::vector<Range> Part(Range range) const;
  // What of `range` is in it moves with the mapping.
  void Move(Range range, uint64_t to);

 private:
  void Take(Range range);
  std::map<uint64_t, uint64_t> ends_;  // end by begin
};

}  // namespace forkd
