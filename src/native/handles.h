#pragma once

#include <map>
#include <memory>
#include <mutex>

namespace forkd {

// Native objects by the numbers that JavaScript knows them by. The numbers are valid in every thread of the
// process and are not used twice.
template <typename Type>
class Handles {
 public:
  int Add(std::shared_ptr<Type> object) {
    std::lock_guard lock(mutex_);
    objects_[++last_] = std::move(object);
    return last_;
  }
  // Null when there is none (any more). Whoever holds the pointer may go on.
  std::shared_ptr<Type> Find(int handle) {
    std::lock_guard lock(mutex_);
    auto found = objects_.find(handle);
    return found == objects_.end() ? nullptr : found->second;
  }
  std::shared_ptr<Type> Take(int handle) {
    std::lock_guard lock(mutex_);
    auto node = objects_.extract(handle);
    return node ? std::move(node.mapped()) : nullptr;
  }

 private:
  std::mutex mutex_;
  std::map<int, std::shared_ptr<Type>> objects_;
  int last_ = 0;
};

}  // namespace forkd
