#include "fault_context.h"

#include <time.h>

namespace forkd {

int64_t MonotonicNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec;
}

SysError FaultContext::Drain(Drained* drained) {
  std::vector<UffdEvent> events;
  std::lock_guard lock(mutex_);
  SysError error = ReadUffdEvents(uffd_.Get(), &events);
  int64_t now = events.empty() ? 0 : MonotonicNs();
  for (UffdEvent& event : events) {
    switch (event.kind) {
      case UffdEvent::kFault:
        drained->faults.push_back({shared_from_this(), event.address, event.thread, now});
        break;
      case UffdEvent::kFork: {
        Uffd child;
        if (SysError failed = Uffd::AdoptChild(std::move(event.child), uffd_.features(), &child)) {
          error = failed;
          break;
        }
        drained->children.push_back(
            std::make_shared<FaultContext>(std::move(child), regions_, UniqueFd(), anonymous_, removed_));
        drained->children.back()->pid_namespace = pid_namespace;
        break;
      }
      case UffdEvent::kRemap:
        regions_.Move({event.start, event.end}, event.to);
        removed_.Move({event.start, event.end}, event.to);
        drained->changes++;
        break;
      case UffdEvent::kRemove:
        if (anonymous_) removed_.Add({event.start, event.end});
        drained->changes++;
        break;
      case UffdEvent::kUnmap:
        regions_.Unmap({event.start, event.end});
        drained->changes++;
        break;
    }
  }
  return error;
}

bool FaultContext::ImageOffset(uint64_t address, uint64_t* image_offset) const {
  std::lock_guard lock(mutex_);
  return regions_.ImageOffset(address, image_offset);
}

// Places by view, then wakes each whole view: the placing ioctls wake nobody.
template <typename Place>
Placed FaultContext::ForViews(Range image, Place place) {
  std::lock_guard lock(mutex_);
  for (const Regions::View& view : regions_.Views(image)) {
    Placed placed = place(view);
    if (placed != Placed::kDone) return placed;
    uffd_.Wake(view.addresses.begin, view.addresses.end - view.addresses.begin);
  }
  return Placed::kDone;
}

Placed FaultContext::WakeChunk(Range image) {
  return ForViews(image, [](const Regions::View&) { return Placed::kDone; });
}

Placed FaultContext::WakePage(uint64_t address) {
  uffd_.Wake(address, kPageBytes);
  return Placed::kDone;
}

Placed FaultContext::PlaceZeros(Range image, SysError* error) {
  return ForViews(image, [&](const Regions::View& view) {
    return uffd_.Zero(view.addresses.begin, view.addresses.end - view.addresses.begin, error);
  });
}

Placed FaultContext::PlaceCopy(Range image, const uint8_t* bytes, SysError* error) {
  return ForViews(image, [&](const Regions::View& view) {
    std::vector<Range> parts = removed_.Rest(view.addresses);
    for (Range part : parts) {
      const uint8_t* from = bytes + (view.offset - image.begin) + (part.begin - view.addresses.begin);
      Placed placed = uffd_.Copy(part.begin, from, part.end - part.begin, error);
      if (placed != Placed::kDone) return placed;
    }
    // What is left of the view was removed.
    bool whole =
        parts.size() == 1 && parts[0].begin == view.addresses.begin && parts[0].end == view.addresses.end;
    if (whole) return Placed::kDone;
    return uffd_.Zero(view.addresses.begin, view.addresses.end - view.addresses.begin, error);
  });
}

Placed FaultContext::PlacePoison(Range image, SysError* error) {
  return ForViews(image, [&](const Regions::View& view) {
    return uffd_.Poison(view.addresses.begin, view.addresses.end - view.addresses.begin, error);
  });
}

bool FaultContext::Removed(uint64_t address) const {
  std::lock_guard lock(mutex_);
  return removed_.Contains(address);
}

Placed FaultContext::PlaceRemoved(Range addresses, SysError* error) {
  std::lock_guard lock(mutex_);
  for (Range part : removed_.Part(addresses)) {
    Placed placed = uffd_.Zero(part.begin, part.end - part.begin, error);
    if (placed != Placed::kDone) return placed;
    uffd_.Wake(part.begin, part.end - part.begin);
  }
  return Placed::kDone;
}

bool FaultContext::Alive() const {
  std::lock_guard lock(mutex_);
  return uffd_.Alive(regions_.AnyAddress());
}

int FaultContext::Stray() {
  std::lock_guard lock(mutex_);
  return ++strays_;
}

}  // namespace forkd
