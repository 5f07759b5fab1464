// Drives YuanRong's C++ TransferEngine through symbols that its shared object exports (0.1.0 to 0.8.1 do).
//
// The class is not declared here: it is room that its own constructor fills and its own destructor empties, and its
// methods are functions that take it as their first argument, which is what the C++ ABI makes of them on x86-64 and
// aarch64. Arguments are standard types of libstdc++, so this has to be compiled against that library.

#include "transfer_engine.h"

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <vector>

namespace {

// What the methods return: laid out alike in all versions that export the class.
struct Result {
    std::int32_t code = 0;
    std::string message;
    int line = 0;
    std::string file;
};

using Text = std::string;
using Numbers = std::vector<unsigned long>;

// Several times what the versions at hand need (about 350 bytes).
constexpr std::size_t kEngineRoom = 4096;

struct Library {
    void (*construct)(void *);
    void (*destroy)(void *);
    Result (*initialize)(void *, const Text &, const Text &, const Text &);
    std::int32_t (*rpc_port)(void *);
    Result (*enroll)(void *, const Numbers &, const Numbers &);
    Result (*remove)(void *, const Numbers &);
    Result (*read)(void *, const Text &, const Numbers &, const Numbers &, const Numbers &);
    Result (*finalize)(void *);
};

int say(int code, const char *what, char *message, size_t room) {
    if (room > 0) std::snprintf(message, room, "%s", what);
    return code;
}

template <typename F>
bool find(void *handle, const char *name, F &out, std::string &missing) {
    out = reinterpret_cast<F>(dlsym(handle, name));
    if (out == nullptr) missing += std::string(missing.empty() ? "" : ", ") + name;
    return out != nullptr;
}

#define CLASS "_ZN10datasystem14TransferEngine"
#define TEXT "RKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"
#define NUMBERS "RKSt6vectorImSaImEE"

std::string load(const char *path, Library &library) {
    // Kept open for ever: its threads may outlive the engine, and its symbols the last call.
    void *handle = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
    if (handle == nullptr) {
        const char *why = dlerror();
        return why == nullptr ? "dlopen failed" : why;
    }
    std::string missing;
    find(handle, CLASS "C1Ev", library.construct, missing);
    find(handle, CLASS "D1Ev", library.destroy, missing);
    find(handle, CLASS "10InitializeE" TEXT "S8_S8_", library.initialize, missing);
    find(handle, CLASS "10GetRpcPortEv", library.rpc_port, missing);
    find(handle, CLASS "19BatchRegisterMemoryE" NUMBERS "S5_", library.enroll, missing);
    find(handle, CLASS "21BatchUnregisterMemoryE" NUMBERS, library.remove, missing);
    find(handle, CLASS "21BatchTransferSyncReadE" TEXT NUMBERS "SD_SD_", library.read, missing);
    find(handle, CLASS "8FinalizeEv", library.finalize, missing);
    return missing.empty() ? "" : "it exports no " + missing;
}

}  // namespace

struct rfork_te {
    Library library;
    alignas(64) unsigned char engine[kEngineRoom];
};

namespace {

// Runs a call; what it returns or throws becomes a code and a message.
template <typename F>
int guard(F call, char *message, size_t room) {
    try {
        const Result result = call();
        return result.code == 0 ? 0 : say(result.code, result.message.c_str(), message, room);
    } catch (const std::exception &error) {
        return say(RFORK_TE_THREW, error.what(), message, room);
    } catch (...) {
        return say(RFORK_TE_THREW, "an exception without a text", message, room);
    }
}

Numbers numbers(const size_t *from, size_t count) { return Numbers(from, from + count); }

}  // namespace

extern "C" int rfork_te_open(const char *library, const char *python, rfork_te **out, char *message, size_t room) {
    return guard(
        [&]() -> Result {
            if (python != nullptr && dlopen(python, RTLD_LAZY | RTLD_GLOBAL) == nullptr) {
                const char *why = dlerror();
                return {RFORK_TE_NOT_LOADED, why == nullptr ? "dlopen failed" : why, 0, ""};
            }
            Library loaded{};
            const std::string problem = load(library, loaded);
            if (!problem.empty()) return {RFORK_TE_NOT_LOADED, problem, 0, ""};
            auto *engine = new rfork_te{};
            engine->library = loaded;
            try {
                loaded.construct(engine->engine);
            } catch (...) {
                delete engine;
                throw;
            }
            *out = engine;
            return {};
        },
        message, room);
}

extern "C" int rfork_te_initialize(rfork_te *engine, const char *local, const char *device, char *message,
                                   size_t room) {
    return guard([&] { return engine->library.initialize(engine->engine, local, "ascend", device); }, message, room);
}

extern "C" int rfork_te_rpc_port(rfork_te *engine) {
    try {
        return engine->library.rpc_port(engine->engine);
    } catch (...) {
        return RFORK_TE_THREW;
    }
}

extern "C" int rfork_te_register(rfork_te *engine, const size_t *starts, const size_t *lens, size_t count,
                                 char *message, size_t room) {
    return guard(
        [&] { return engine->library.enroll(engine->engine, numbers(starts, count), numbers(lens, count)); }, message,
        room);
}

extern "C" int rfork_te_unregister(rfork_te *engine, const size_t *starts, size_t count, char *message,
                                   size_t room) {
    return guard([&] { return engine->library.remove(engine->engine, numbers(starts, count)); }, message, room);
}

extern "C" int rfork_te_read(rfork_te *engine, const char *peer, const size_t *to, const size_t *from,
                             const size_t *lens, size_t count, char *message, size_t room) {
    return guard(
        [&] {
            return engine->library.read(engine->engine, peer, numbers(to, count), numbers(from, count),
                                        numbers(lens, count));
        },
        message, room);
}

extern "C" int rfork_te_finalize(rfork_te *engine, char *message, size_t room) {
    return guard([&] { return engine->library.finalize(engine->engine); }, message, room);
}

extern "C" void rfork_te_close(rfork_te *engine) {
    try {
        engine->library.destroy(engine->engine);
    } catch (...) {
        // Nothing is left to be done with it.
    }
    delete engine;
}
