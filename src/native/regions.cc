#include "regions.h"

namespace forkd {

namespace {

Range Common(Range a, Range b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

}  // namespace

bool Regions::ImageOffset(uint64_t address, uint64_t* offset) const {
  for (const Region& region : regions_) {
    if (address < region.base || address - region.base >= region.bytes) continue;
    *offset = address - region.base + region.offset;
    return true;
  }
  return false;
}

std::vector<Regions::View> Regions::Views(Range image) const {
  std::vector<View> views;
  for (const Region& region : regions_) {
    Range shown = Common(image, {region.offset, region.offset + region.bytes});
    if (shown.begin >= shown.end) continue;
    uint64_t first = region.base + (shown.begin - region.offset);
    views.push_back({{first, first + (shown.end - shown.begin)}, shown.begin});
  }
  return views;
}

void Regions::Unmap(Range addresses) {
  std::vector<Region> left;
  for (const Region& region : regions_) {
    uint64_t end = region.base + region.bytes;
    Range gone = Common(addresses, {region.base, end});
    if (gone.begin >= gone.end) {
      left.push_back(region);
      continue;
    }
    if (gone.begin > region.base) left.push_back({region.base, gone.begin - region.base, region.offset});
    if (gone.end < end) left.push_back({gone.end, end - gone.end, region.offset + (gone.end - region.base)});
  }
  regions_ = std::move(left);
}

void Regions::Move(Range addresses, uint64_t to) {
  std::vector<Region> moved;
  for (const Region& region : regions_) {
    Range part = Common(addresses, {region.base, region.base + region.bytes});
    if (part.begin >= part.end) continue;
    uint64_t offset = region.offset + (part.begin - region.base);
    moved.push_back({to + (part.begin - addresses.begin), part.end - part.begin, offset});
  }
  Unmap(addresses);
  regions_.insert(regions_.end(), moved.begin(), moved.end());
}

void RangeSet::Add(Range range) {
  if (range.begin >= range.end) return;
  auto next = ends_.upper_bound(range.begin);
  if (next != ends_.begin() && std::prev(next)->second >= range.begin) --next;
  while (next != ends_.end() && next->first <= range.end) {
    range.begin = std::min(range.begin, next->first);
    range.end = std::max(range.end, next->second);
    next = ends_.erase(next);
  }
  ends_[range.begin] = range.end;
}

bool RangeSet::Contains(uint64_t address) const {
  auto next = ends_.upper_bound(address);
  return next != ends_.begin() && std::prev(next)->second > address;
}

std::vector<Range> RangeSet::Rest(Range range) const {
  std::vector<Range> rest;
  auto next = ends_.upper_bound(range.begin);
  if (next != ends_.begin()) --next;
  for (; next != ends_.end() && next->first < range.end; ++next) {
    if (next->first > range.begin) rest.push_back({range.begin, next->first});
    range.begin = std::max(range.begin, next->second);
    if (range.begin >= range.end) return rest;
  }
  if (range.begin < range.end) rest.push_back(range);
  return rest;
}

std::vector<Range> RangeSet::Part(Range range) const {
  std::vector<Range> parts;
  auto next = ends_.upper_bound(range.begin);
  if (next != ends_.begin()) --next;
  for (; next != ends_.end() && next->first < range.end; ++next) {
    Range part = Common(range, {next->first, next->second});
    if (part.begin < part.end) parts.push_back(part);
  }
  return parts;
}

void RangeSet::Move(Range range, uint64_t to) {
  std::vector<Range> moved = Part(range);
  Take(range);
  for (Range part : moved) Add({part.begin - range.begin + to, part.end - range.begin + to});
}

void RangeSet::Take(Range range) {
  RangeSet left;
  for (const auto& [begin, end] : ends_) {
    left.Add({begin, std::min(end, range.begin)});
    left.Add({std::max(begin, range.end), end});
  }
  ends_ = std::move(left.ends_);
}

}  // namespace forkd
