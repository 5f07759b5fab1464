// Made by bindgen from include/transfer_engine.h; see tests/bindings.rs. Do not edit.

#[repr(C)]
#[derive(Debug)]
pub struct rfork_te {
    _unused: [u8; 0],
}
pub const RFORK_TE_NOT_LOADED: _bindgen_ty_1 = -1;
pub const RFORK_TE_THREW: _bindgen_ty_1 = -2;
pub type _bindgen_ty_1 = ::std::os::raw::c_int;
unsafe extern "C" {
    pub fn rfork_te_open(
        library: *const ::std::os::raw::c_char,
        python: *const ::std::os::raw::c_char,
        out: *mut *mut rfork_te,
        message: *mut ::std::os::raw::c_char,
        room: usize,
    ) -> ::std::os::raw::c_int;
}
unsafe extern "C" {
    pub fn rfork_te_initialize(
        engine: *mut rfork_te,
        local: *const ::std::os::raw::c_char,
        device: *const ::std::os::raw::c_char,
        message: *mut ::std::os::raw::c_char,
        room: usize,
    ) -> ::std::os::raw::c_int;
}
unsafe extern "C" {
    pub fn rfork_te_rpc_port(engine: *mut rfork_te) -> ::std::os::raw::c_int;
}
unsafe extern "C" {
    pub fn rfork_te_register(
        engine: *mut rfork_te,
        starts: *const usize,
        lens: *const usize,
        count: usize,
        message: *mut ::std::os::raw::c_char,
        room: usize,
    ) -> ::std::os::raw::c_int;
}
unsafe extern "C" {
    pub fn rfork_te_unregister(
        engine: *mut rfork_te,
        starts: *const usize,
        count: usize,
        message: *mut ::std::os::raw::c_char,
        room: usize,
    ) -> ::std::os::raw::c_int;
}
unsafe extern "C" {
    pub fn rfork_te_read(
        engine: *mut rfork_te,
        peer: *const ::std::os::raw::c_char,
        to: *const usize,
        from: *const usize,
        lens: *const usize,
        count: usize,
        message: *mut ::std::os::raw::c_char,
        room: usize,
    ) -> ::std::os::raw::c_int;
}
unsafe extern "C" {
    pub fn rfork_te_finalize(
        engine: *mut rfork_te,
        message: *mut ::std::os::raw::c_char,
        room: usize,
    ) -> ::std::os::raw::c_int;
}
unsafe extern "C" {
    pub fn rfork_te_close(engine: *mut rfork_te);
}
