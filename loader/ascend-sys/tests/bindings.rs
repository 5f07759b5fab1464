//! Makes the bindings anew and compares them with those that are committed.
//!
//! `RFORK_REGENERATE=1 cargo test -p rfork-ascend-sys --test bindings` writes them instead. Needs libclang (Debian's
//! `libclang1`, or the package `libclang` of PyPI with `LIBCLANG_PATH`), and only here: a build does not.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are not seen as tests.

use std::path::{Path, PathBuf};

/// One header and what is made of it.
fn check(header: &str, output: &str, configure: impl FnOnce(bindgen::Builder) -> bindgen::Builder) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rustfmt: PathBuf = root.join("../../rustfmt.toml");
    let builder = bindgen::Builder::default()
        .header(root.join("include").join(header).display().to_string())
        // Comments of C make no Rust documentation.
        .generate_comments(false)
        .layout_tests(false)
        .wrap_unsafe_ops(true)
        .disable_header_comment()
        .raw_line(format!("// Made by bindgen from include/{header}; see tests/bindings.rs. Do not edit."))
        .rustfmt_configuration_file(Some(rustfmt))
        // Named, so that they do not depend on the compiler at hand.
        .rust_target(bindgen::RustTarget::stable(85, 0).expect("a version that bindgen knows"))
        .rust_edition(bindgen::RustEdition::Edition2024);
    let made = configure(builder).generate().expect("bindgen and libclang").to_string();
    let path = root.join("src").join(output);
    if std::env::var_os("RFORK_REGENERATE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == made,
        "src/{output} is not what bindgen makes of include/{header}; run\n  \
         RFORK_REGENERATE=1 cargo test -p rfork-ascend-sys --test bindings\n{made}"
    );
}

#[test]
fn those_of_ascendcl_are_what_its_header_says() {
    check("ascendcl.h", "ascendcl.rs", |builder| {
        builder
            .allowlist_function("acl.*")
            .dynamic_library_name("AscendCl")
            .dynamic_link_require_all(true)
            .default_enum_style(bindgen::EnumVariation::Consts)
            .prepend_enum_name(false)
    });
}

#[test]
fn those_of_the_shim_are_what_its_header_says() {
    check("transfer_engine.h", "transfer_engine.rs", |builder| {
        builder
            .allowlist_function("rfork_te.*")
            .allowlist_var("RFORK_TE.*")
            .allowlist_type("rfork_te")
            .default_enum_style(bindgen::EnumVariation::Consts)
            .prepend_enum_name(false)
    });
}
