// spawn(): options to plan. The work is described in spawn.h.
#include "spawn.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "addon.h"
#include "args.h"
#include "error.h"

namespace forkd {

namespace {

void Sort(Args& args, std::vector<FdMapping>& fds) {
  std::sort(fds.begin(), fds.end(), [](auto& a, auto& b) { return a.target < b.target; });
  auto same = [](auto& a, auto& b) { return a.target == b.target; };
  if (std::adjacent_find(fds.begin(), fds.end(), same) != fds.end()) args.Refuse("fds", "distinct targets");
}

std::vector<FdMapping> ReadFds(Args& args, Napi::Value value) {
  std::vector<FdMapping> fds;
  Napi::Array pairs = args.ToArray(value, "fds");
  for (uint32_t i = 0; args.Ok() && i < pairs.Length(); i++) {
    std::vector<int> pair = args.ToFds(pairs.Get(i), "fds");
    if (pair.size() != 2) {
      args.Refuse("fds", "[source, target] pairs");
      break;
    }
    fds.push_back({pair[0], pair[1]});
  }
  Sort(args, fds);
  return fds;
}

std::vector<ResourceLimit> ReadLimits(Args& args, Napi::Value value) {
  std::vector<ResourceLimit> limits;
  Napi::Array pairs = args.ToArray(value, "limits");
  for (uint32_t i = 0; args.Ok() && i < pairs.Length(); i++) {
    Napi::Array pair = args.ToArray(pairs.Get(i), "limits");
    int resource = args.ToInt(pair.Get(0u), "limits", 0, RLIM_NLIMITS - 1);
    Napi::Value most = pair.Get(1u);
    double number = most.IsNumber() ? most.As<Napi::Number>().DoubleValue() : -1;
    if (!(number >= 0 && number <= 9007199254740991)) {
      args.Refuse("limits", "[resource, value] pairs");
      break;
    }
    limits.push_back({resource, static_cast<rlim_t>(number)});
  }
  return limits;
}

std::vector<char*> Pointers(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

InitPlan ReadInit(Args& args, Napi::Value value) {
  InitPlan init;
  if (!value.IsObject()) {
    args.Refuse("init", "an object");
    return init;
  }
  Napi::Object options = value.As<Napi::Object>();
  init.file = args.ToText(options.Get("file"), "init.file");
  init.args = args.ToTexts(options.Get("args"), "init.args");
  if (init.args.empty()) args.Refuse("init.args", "args[0]");
  init.line = args.ToFd(options.Get("line"), "init.line");
  return init;
}

SpawnPlan ReadPlan(Args& args, Napi::Object options) {
  auto given = [&](const char* name) { return !options.Get(name).IsUndefined(); };
  SpawnPlan plan;
  plan.file = args.ToText(options.Get("file"), "file");
  plan.args = args.ToTexts(options.Get("args"), "args");
  plan.env = args.ToTexts(options.Get("env"), "env");
  if (plan.args.empty()) args.Refuse("args", "args[0]");
  if (given("init")) plan.init = ReadInit(args, options.Get("init"));
  if (given("cwd")) plan.cwd = args.ToText(options.Get("cwd"), "cwd");
  plan.fds = ReadFds(args, options.Get("fds"));
  if (given("netns")) plan.netns = args.ToFd(options.Get("netns"), "netns");
  if (given("unshare")) plan.unshare = args.ToInt(options.Get("unshare"), "unshare", 0, INT32_MAX);
  if (given("ownUserNamespace") && args.ToBool(options.Get("ownUserNamespace"), "ownUserNamespace")) {
    plan.uid_map = "0 " + std::to_string(geteuid()) + " 1";
    plan.gid_map = "0 " + std::to_string(getegid()) + " 1";
  }
  if (given("limits")) plan.limits = ReadLimits(args, options.Get("limits"));
  if (given("cgroups")) plan.cgroups = args.ToFds(options.Get("cgroups"), "cgroups");
  if (given("batch")) plan.batch = args.ToBool(options.Get("batch"), "batch");
  if (given("dieWithParent"))
    plan.die_with_parent = args.ToBool(options.Get("dieWithParent"), "dieWithParent");
  if (given("oomScoreAdj")) {
    plan.oom_score_adj = std::to_string(args.ToInt(options.Get("oomScoreAdj"), "oomScoreAdj", -1000, 1000));
  }
  return plan;
}

// What the failing step was about, for the message.
const char* PathOf(const SpawnPlan& plan, const char* step) {
  if (strcmp(step, "execve") == 0) return plan.file.c_str();
  if (strcmp(step, "execve of the init") == 0) return plan.init->file.c_str();
  if (strcmp(step, "chdir") == 0) return plan.cwd->c_str();
  return nullptr;
}

// The pipe between a first process and the child. It is nobody else's: JavaScript never has it, which could
// be terminated before it has closed it.
class Line {
 public:
  SysError Lay(Args& args, SpawnPlan& plan) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return SysError::Last("pipe2");
    reading_ = UniqueFd(ends[0]);
    writing_ = UniqueFd(ends[1]);
    plan.init->fds = {{reading_.Get(), 0}};
    plan.fds.push_back({writing_.Get(), plan.init->line});
    Sort(args, plan.fds);
    return {};
  }

  // Those of pipes have 32 bits.
  double Inode() const {
    struct stat status = {};
    fstat(writing_.Get(), &status);
    return static_cast<uint32_t>(status.st_ino);
  }

 private:
  UniqueFd reading_, writing_;
};

Napi::Value Spawn(const Napi::CallbackInfo& info) {
  Args args(info);
  SpawnPlan plan = ReadPlan(args, args.Object(0, "options"));
  if (!args.Ok()) return {};
  Line line;
  if (plan.init) {
    if (SysError error = line.Lay(args, plan)) return ThrowSysError(info.Env(), error);
    if (!args.Ok()) return {};
  }
  // Taken here, where the plan no longer moves: a short string lives inside its object.
  plan.argv = Pointers(plan.args);
  plan.envp = Pointers(plan.env);
  if (plan.init) plan.init->argv = Pointers(plan.init->args);

  Spawned spawned = SpawnOnThread(plan);
  if (spawned.error) return ThrowSysError(info.Env(), spawned.error, PathOf(plan, spawned.error.syscall));
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("pid", spawned.pid);
  result.Set("inside", spawned.inside);
  // Not set in a worker that is being terminated: then it closes here.
  if (spawned.init.Valid()) {
    result.Set("line", line.Inode());
    if (result.Set("init", spawned.init.Get())) spawned.init.Release();
  }
  if (result.Set("pidfd", spawned.pidfd.Get())) spawned.pidfd.Release();
  return result;
}

}  // namespace

void RegisterSpawn(Napi::Env env, Napi::Object exports) {
  Export<Spawn>(env, exports, "spawn");
}

}  // namespace forkd
