#include "uffd_events.h"

#include <linux/userfaultfd.h>
#include <unistd.h>

#include "uffd.h"

namespace forkd {

namespace {

// A vCPU waits with one fault at a time, so this is more than most virtual machines ever have at once.
constexpr size_t kBatch = 32;

bool Decode(const uffd_msg& message, UffdEvent* event) {
  switch (message.event) {
    case UFFD_EVENT_PAGEFAULT:
      event->kind = UffdEvent::kFault;
      event->address = message.arg.pagefault.address & ~(kPageBytes - 1);
      event->fault_flags = message.arg.pagefault.flags;
      event->thread = static_cast<int>(message.arg.pagefault.feat.ptid);
      return true;
    case UFFD_EVENT_FORK:
      event->kind = UffdEvent::kFork;
      event->child = UniqueFd(static_cast<int>(message.arg.fork.ufd));
      return true;
    case UFFD_EVENT_REMAP:
      event->kind = UffdEvent::kRemap;
      event->start = message.arg.remap.from;
      event->end = message.arg.remap.from + message.arg.remap.len;
      event->to = message.arg.remap.to;
      return true;
    case UFFD_EVENT_REMOVE:
    case UFFD_EVENT_UNMAP:
      event->kind = message.event == UFFD_EVENT_REMOVE ? UffdEvent::kRemove : UffdEvent::kUnmap;
      event->start = message.arg.remove.start;
      event->end = message.arg.remove.end;
      return true;
    default:
      return false;  // of a feature that nobody asked for
  }
}

}  // namespace

SysError ReadUffdEvents(int uffd, std::vector<UffdEvent>* events) {
  uffd_msg messages[kBatch];
  for (;;) {
    ssize_t bytes = read(uffd, messages, sizeof messages);
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes < 0 && errno == EAGAIN) return {};
    if (bytes < 0) return SysError::Last("read userfaultfd");
    size_t count = static_cast<size_t>(bytes) / sizeof *messages;
    for (size_t i = 0; i < count; i++) {
      UffdEvent event;
      if (Decode(messages[i], &event)) events->push_back(std::move(event));
    }
    if (count < kBatch) return {};
  }
}

}  // namespace forkd
