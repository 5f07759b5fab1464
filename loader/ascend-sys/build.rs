//! Compiles the shim, when it is asked for.

fn main() {
    println!("cargo::rerun-if-changed=shim/transfer_engine.cpp");
    println!("cargo::rerun-if-changed=include/transfer_engine.h");
    #[cfg(feature = "yuanrong-native")]
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .include("include")
        .file("shim/transfer_engine.cpp")
        .compile("rfork_te_shim");
}
