import hashlib, json, os, struct, sys
torch = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
         "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "F8_E4M3": "float8_e4m3fn"}
files = {}  # path: the tensors that an index gives to it, or None for all
for path in sys.argv[1:]:
    if path.endswith(".index.json"):
        for name, file in json.load(open(path))["weight_map"].items():
            files.setdefault(os.path.join(os.path.dirname(path), file), set()).add(name)
    else:
        files[path] = None
tensors = {}
for path, given in files.items():
    file = open(path, "rb")
    header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    header.pop("__metadata__", None)
    tensors.update({name: (file, file.tell(), entry) for name, entry in header.items()
                    if given is None or name in given})
digest = hashlib.sha256()
for name, (file, start, entry) in sorted(tensors.items(), key=lambda item: item[0].encode()):
    begin, end = entry["data_offsets"]
    if end > begin:
        digest.update("\n".join([name, torch[entry["dtype"]], ",".join(map(str, entry["shape"])), ""]).encode())
        file.seek(start + begin)
        digest.update(file.read(end - begin))
print(digest.hexdigest())
