// Made by bindgen from include/ascendcl.h; see tests/bindings.rs. Do not edit.

pub type aclError = ::std::os::raw::c_int;
pub const ACL_MEM_MALLOC_HUGE_FIRST: aclrtMemMallocPolicy = 0;
pub const ACL_MEM_MALLOC_HUGE_ONLY: aclrtMemMallocPolicy = 1;
pub const ACL_MEM_MALLOC_NORMAL_ONLY: aclrtMemMallocPolicy = 2;
pub type aclrtMemMallocPolicy = ::std::os::raw::c_uint;
pub const ACL_MEMCPY_HOST_TO_HOST: aclrtMemcpyKind = 0;
pub const ACL_MEMCPY_HOST_TO_DEVICE: aclrtMemcpyKind = 1;
pub const ACL_MEMCPY_DEVICE_TO_HOST: aclrtMemcpyKind = 2;
pub const ACL_MEMCPY_DEVICE_TO_DEVICE: aclrtMemcpyKind = 3;
pub type aclrtMemcpyKind = ::std::os::raw::c_uint;
pub struct AscendCl {
    __library: ::libloading::Library,
    pub aclInit: unsafe extern "C" fn(configPath: *const ::std::os::raw::c_char) -> aclError,
    pub aclFinalize: unsafe extern "C" fn() -> aclError,
    pub aclGetRecentErrMsg: unsafe extern "C" fn() -> *const ::std::os::raw::c_char,
    pub aclrtGetDeviceCount: unsafe extern "C" fn(count: *mut ::std::os::raw::c_uint) -> aclError,
    pub aclrtSetDevice: unsafe extern "C" fn(deviceId: ::std::os::raw::c_int) -> aclError,
    pub aclrtResetDevice: unsafe extern "C" fn(deviceId: ::std::os::raw::c_int) -> aclError,
    pub aclrtSynchronizeDevice: unsafe extern "C" fn() -> aclError,
    pub aclrtMalloc: unsafe extern "C" fn(
        devPtr: *mut *mut ::std::os::raw::c_void,
        size: usize,
        policy: aclrtMemMallocPolicy,
    ) -> aclError,
    pub aclrtFree: unsafe extern "C" fn(devPtr: *mut ::std::os::raw::c_void) -> aclError,
    pub aclrtMallocHost:
        unsafe extern "C" fn(hostPtr: *mut *mut ::std::os::raw::c_void, size: usize) -> aclError,
    pub aclrtFreeHost: unsafe extern "C" fn(hostPtr: *mut ::std::os::raw::c_void) -> aclError,
    pub aclrtMemcpy: unsafe extern "C" fn(
        dst: *mut ::std::os::raw::c_void,
        destMax: usize,
        src: *const ::std::os::raw::c_void,
        count: usize,
        kind: aclrtMemcpyKind,
    ) -> aclError,
}
impl AscendCl {
    pub unsafe fn new<P>(path: P) -> Result<Self, ::libloading::Error>
    where
        P: AsRef<::std::ffi::OsStr>,
    {
        let path = path.as_ref();
        let library = unsafe { ::libloading::Library::new(path) }?;
        unsafe { Self::from_library(library) }
    }
    pub unsafe fn from_library<L>(library: L) -> Result<Self, ::libloading::Error>
    where
        L: Into<::libloading::Library>,
    {
        let __library = library.into();
        let aclInit = unsafe { __library.get(b"aclInit\0") }.map(|sym| *sym)?;
        let aclFinalize = unsafe { __library.get(b"aclFinalize\0") }.map(|sym| *sym)?;
        let aclGetRecentErrMsg = unsafe { __library.get(b"aclGetRecentErrMsg\0") }.map(|sym| *sym)?;
        let aclrtGetDeviceCount = unsafe { __library.get(b"aclrtGetDeviceCount\0") }.map(|sym| *sym)?;
        let aclrtSetDevice = unsafe { __library.get(b"aclrtSetDevice\0") }.map(|sym| *sym)?;
        let aclrtResetDevice = unsafe { __library.get(b"aclrtResetDevice\0") }.map(|sym| *sym)?;
        let aclrtSynchronizeDevice = unsafe { __library.get(b"aclrtSynchronizeDevice\0") }.map(|sym| *sym)?;
        let aclrtMalloc = unsafe { __library.get(b"aclrtMalloc\0") }.map(|sym| *sym)?;
        let aclrtFree = unsafe { __library.get(b"aclrtFree\0") }.map(|sym| *sym)?;
        let aclrtMallocHost = unsafe { __library.get(b"aclrtMallocHost\0") }.map(|sym| *sym)?;
        let aclrtFreeHost = unsafe { __library.get(b"aclrtFreeHost\0") }.map(|sym| *sym)?;
        let aclrtMemcpy = unsafe { __library.get(b"aclrtMemcpy\0") }.map(|sym| *sym)?;
        Ok(AscendCl {
            __library,
            aclInit,
            aclFinalize,
            aclGetRecentErrMsg,
            aclrtGetDeviceCount,
            aclrtSetDevice,
            aclrtResetDevice,
            aclrtSynchronizeDevice,
            aclrtMalloc,
            aclrtFree,
            aclrtMallocHost,
            aclrtFreeHost,
            aclrtMemcpy,
        })
    }
    pub unsafe fn aclInit(&self, configPath: *const ::std::os::raw::c_char) -> aclError {
        unsafe { (self.aclInit)(configPath) }
    }
    pub unsafe fn aclFinalize(&self) -> aclError {
        unsafe { (self.aclFinalize)() }
    }
    pub unsafe fn aclGetRecentErrMsg(&self) -> *const ::std::os::raw::c_char {
        unsafe { (self.aclGetRecentErrMsg)() }
    }
    pub unsafe fn aclrtGetDeviceCount(&self, count: *mut ::std::os::raw::c_uint) -> aclError {
        unsafe { (self.aclrtGetDeviceCount)(count) }
    }
    pub unsafe fn aclrtSetDevice(&self, deviceId: ::std::os::raw::c_int) -> aclError {
        unsafe { (self.aclrtSetDevice)(deviceId) }
    }
    pub unsafe fn aclrtResetDevice(&self, deviceId: ::std::os::raw::c_int) -> aclError {
        unsafe { (self.aclrtResetDevice)(deviceId) }
    }
    pub unsafe fn aclrtSynchronizeDevice(&self) -> aclError {
        unsafe { (self.aclrtSynchronizeDevice)() }
    }
    pub unsafe fn aclrtMalloc(
        &self,
        devPtr: *mut *mut ::std::os::raw::c_void,
        size: usize,
        policy: aclrtMemMallocPolicy,
    ) -> aclError {
        unsafe { (self.aclrtMalloc)(devPtr, size, policy) }
    }
    pub unsafe fn aclrtFree(&self, devPtr: *mut ::std::os::raw::c_void) -> aclError {
        unsafe { (self.aclrtFree)(devPtr) }
    }
    pub unsafe fn aclrtMallocHost(&self, hostPtr: *mut *mut ::std::os::raw::c_void, size: usize) -> aclError {
        unsafe { (self.aclrtMallocHost)(hostPtr, size) }
    }
    pub unsafe fn aclrtFreeHost(&self, hostPtr: *mut ::std::os::raw::c_void) -> aclError {
        unsafe { (self.aclrtFreeHost)(hostPtr) }
    }
    pub unsafe fn aclrtMemcpy(
        &self,
        dst: *mut ::std::os::raw::c_void,
        destMax: usize,
        src: *const ::std::os::raw::c_void,
        count: usize,
        kind: aclrtMemcpyKind,
    ) -> aclError {
        unsafe { (self.aclrtMemcpy)(dst, destMax, src, count, kind) }
    }
}
