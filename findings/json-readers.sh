#!/usr/bin/env bash
# JSON that PostgreSQL stores makes a whole record unreadable for most readers, or silently another number.
#
# A jsonb value may be nested thousands deep and have numbers of 131,072 digits before the point; jsonb writes 1e400 out as
# 401 digits. With their defaults, Jackson 2.21.0, Python 3.11's json, orjson 3.13.0, Node 20 and Go 1.26 refuse or change it:
#   nested 999 deep in an object: refused by Python's json. 1,500 deep: by Jackson and orjson too. 10,000 deep: by Go too.
#   a number of 1,001 digits: refused by Jackson, orjson and Go. Of 4,301 digits: by Python's json too.
#   a number of 1,000 digits: refused by orjson and Go; Infinity for Node.
#   1e400: Infinity for Jackson, Python and Node, refused by orjson and Go.
#   9007199254740993: 9007199254740992 for Node and Go.
#
# What follows for users: JSON that comes from others goes into a record as a text, and each reader decides for itself whether
# to parse that text. walcast does so with kafka.raw_payload = "text".
#
# Needs Java 17, Maven, Python 3 with venv, Node and Go; installs pinned packages into a temporary folder, which it deletes.
# Exit code 0: as described.
set -euo pipefail

home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
mkdir "$home/documents"

for package in jackson-core:2.21.0 jackson-databind:2.21.0 jackson-annotations:2.21; do
  mvn -q -B dependency:copy -Dartifact="com.fasterxml.jackson.core:$package" -DoutputDirectory="$home/jars"
done
python3 -m venv "$home/python"
"$home/python/bin/pip" -q install orjson==3.13.0

python3 - "$home/documents" <<'PY'
import sys
values = {f'nesting-{n}': '[' * n + ']' * n for n in (500, 999, 1500, 10000)}
values |= {f'digits-{n}': '9' * n for n in (300, 1000, 1001, 4301)}
values |= {'1e400': '1e400', 'above-2^53': '9007199254740993'}
for name, value in values.items():
    open(f'{sys.argv[1]}/{name}', 'w').write('{"id":1,"value":' + value + '}')
PY

cat >"$home/Read.java" <<'JAVA'
import com.fasterxml.jackson.databind.*;
import java.nio.file.*;

class Read {
    public static void main(String[] files) throws Exception {
        for (String file : files) {
            String told;
            try {
                JsonNode value = new ObjectMapper().readTree(Files.readString(Path.of(file))).get("value");
                double number = value.isNumber() ? value.doubleValue() : 0;
                boolean infinite = !value.isBigInteger() && Double.isInfinite(number);
                told = infinite ? "infinite" : value.toString().equals("9007199254740992") ? "changed" : "read";
            } catch (Exception refused) {
                told = "refused";
            }
            System.out.println(Path.of(file).getFileName() + " " + told);
        }
    }
}
JAVA
cat >"$home/read.py" <<'PY'
import importlib, os, sys
json = importlib.import_module(sys.argv[1])
for file in sys.argv[2:]:
    try:
        value = json.loads(open(file).read())['value']
        told = 'infinite' if value == float('inf') else 'changed' if value == 9007199254740992 else 'read'
    except (ValueError, RecursionError):
        told = 'refused'
    print(os.path.basename(file), told)
PY
cat >"$home/read.js" <<'JS'
for (const file of process.argv.slice(2)) {
  let told;
  try {
    const { value } = JSON.parse(require('fs').readFileSync(file, 'utf8'));
    told = value === Infinity ? 'infinite' : value === 9007199254740992 ? 'changed' : 'read';
  } catch {
    told = 'refused';
  }
  console.log(require('path').basename(file), told);
}
JS
cat >"$home/read.go" <<'GO'
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	for _, file := range os.Args[1:] {
		text, _ := os.ReadFile(file)
		var record map[string]any
		told := "read"
		if json.Unmarshal(text, &record) != nil {
			told = "refused"
		} else if record["value"] == 9007199254740992.0 {
			told = "changed"
		}
		fmt.Println(filepath.Base(file), told)
	}
}
GO

documents=("$home"/documents/*)
java -cp "$home/jars/*" "$home/Read.java" "${documents[@]}" >"$home/Jackson"
python3 "$home/read.py" json "${documents[@]}" >"$home/json"
"$home/python/bin/python" "$home/read.py" orjson "${documents[@]}" >"$home/orjson"
node "$home/read.js" "${documents[@]}" >"$home/Node"
(cd "$home" && GOFLAGS=-mod=mod go run read.go "${documents[@]}") >"$home/Go"

failed=0
expect() {
  local name=$1 found wanted=${*:2}
  found=$(for reader in Jackson json orjson Node Go; do sed -n "s/^$name //p" "$home/$reader"; done | paste -sd' ')
  if [ "$found" = "$wanted" ]; then echo "  $name: $found"; else echo "  $name: $found, and not $wanted as described"; failed=1; fi
}

echo "document: Jackson, Python's json, orjson, Node, Go"
expect nesting-500 read read read read read
expect nesting-999 read refused read read read
expect nesting-1500 refused refused refused read read
expect nesting-10000 refused refused refused read refused
expect digits-300 read read read read read
expect digits-1000 read read refused infinite refused
expect digits-1001 refused read refused infinite refused
expect digits-4301 refused refused refused infinite refused
expect 1e400 infinite infinite refused infinite refused
expect 'above-2^53' read read read changed changed
exit $failed
