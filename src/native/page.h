#pragma once

#include <cstddef>

namespace forkd {

constexpr size_t kPageBytes = 4096;  // x86-64's, of host and guest alike

}  // namespace forkd
