{
  "targets": [
    {
      "target_name": "forkd_native",
      # BLAKE3: tools/preinstall.mjs brings it. Each set of instructions is a file; blake3_dispatch.c asks the processor.
      "variables": { "blake3": ["vendor/blake3/blake3.c", "vendor/blake3/blake3_dispatch.c",
        "vendor/blake3/blake3_portable.c", "vendor/blake3/blake3_sse2_x86-64_unix.S",
        "vendor/blake3/blake3_sse41_x86-64_unix.S", "vendor/blake3/blake3_avx2_x86-64_unix.S",
        "vendor/blake3/blake3_avx512_x86-64_unix.S"] },
      "sources": ["<!@(node tools/native-units.mjs)", "<@(blake3)"],
      "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")", "vendor/blake3"],
      # The static library: nothing new is needed at run time. Its symbols stay inside: Node may export its own zstd.
      "libraries": ["-l:libzstd.a"],
      "defines": ["NAPI_VERSION=8", "NODE_ADDON_API_DISABLE_DEPRECATED", "NAPI_DISABLE_CPP_EXCEPTIONS",
        # A worker that is being terminated cannot throw: without this the attempt aborts the process.
        "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS", "_GNU_SOURCE"],
      # Node unloads an addon with the last worker that loaded it; the spawn thread's code must stay.
      "ldflags": ["-Wl,-z,nodelete", "-Wl,--exclude-libs,ALL"],
      "cflags": ["-fvisibility=hidden"],
      "cflags_cc": ["-std=c++20", "-fno-exceptions", "-fno-rtti", "-Wall", "-Wextra", "-Wno-unused-parameter"],
      "cflags_cc!": ["-std=gnu++17", "-fexceptions"]
    },
    {
      # For guests without Python: static, since nothing is known of their libraries.
      "target_name": "forkd_agent",
      "type": "executable",
      "sources": ["<!@(ls -1 src/guest/agent/*.c)"],
      "defines": ["_GNU_SOURCE"],
      "cflags": ["-std=gnu11", "-Os", "-Wall", "-Wextra"],
      "ldflags": ["-static", "-s"]
    },
    {
      # Loaded by any guest's Python, whatever its libc: it needs no library.
      "target_name": "forkd_take",
      "type": "shared_library",
      "product_prefix": "",
      "sources": ["src/guest/take/take.c"],
      "cflags": ["-std=gnu11", "-Os", "-fPIC", "-ffreestanding", "-fno-builtin", "-fno-stack-protector",
        "-fvisibility=hidden", "-Wall", "-Wextra"],
      "ldflags": ["-nostdlib", "-s"]
    },
    {
      # Outlives the daemon: static, since an upgrade may replace the libraries below it.
      "target_name": "forkd_keeper",
      "type": "executable",
      "sources": ["src/native/keeper/keeper.c"],
      "defines": ["_GNU_SOURCE"],
      "cflags": ["-std=gnu11", "-Os", "-Wall", "-Wextra"],
      "ldflags": ["-static", "-s"]
    },
    {
      # Runs for each template: without libc, so that it is a page or two of memory and starts at once.
      "target_name": "forkd_warden",
      "type": "executable",
      "sources": ["src/native/warden/warden.c"],
      "defines": ["_GNU_SOURCE"],
      "cflags": ["-std=gnu11", "-Os", "-Wall", "-Wextra", "-ffreestanding", "-fno-stack-protector", "-fno-pie",
        "-fcf-protection=none", "-fno-asynchronous-unwind-tables"],
      "ldflags": ["-static", "-nostdlib", "-no-pie", "-s", "-Wl,-z,noseparate-code", "-Wl,--build-id=none"]
    },
    {
      "target_name": "forkd_tether",
      "type": "shared_library",
      "product_prefix": "",
      "sources": ["src/native/tether/tether.c"],
      "defines": ["_GNU_SOURCE"],
      "cflags": ["-std=gnu11", "-O2", "-fPIC", "-Wall", "-Wextra"],
      "libraries": ["-lpthread"]
    },
    {
      "target_name": "forkd_fence",
      "type": "shared_library",
      "product_prefix": "",
      "sources": ["src/native/fence/fence.c"],
      "defines": ["_GNU_SOURCE"],
      "cflags": ["-std=gnu11", "-O2", "-fPIC", "-Wall", "-Wextra"]
    },
    {
      "target_name": "forkd_hotfork",
      "type": "shared_library",
      "product_prefix": "",
      "sources": ["<!@(find src/native/hotfork -maxdepth 1 -name \"*.c\")"],
      "defines": ["_GNU_SOURCE"],
      "cflags": ["-std=gnu11", "-O2", "-fPIC", "-Wall", "-Wextra"],
      "libraries": ["-ldl", "-lpthread"]
    }
  ]
}
