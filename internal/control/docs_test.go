package control_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gapless/internal/control"
	"gapless/internal/control/controltest"
)

// blocks are the code blocks of a language in docs/control-api.md.
func blocks(t *testing.T, language string) []string {
	t.Helper()
	text, err := os.ReadFile("../../docs/control-api.md")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, m := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllSubmatch(text, -1) {
		all = append(all, string(m[1]))
	}
	return all
}

// TestDocs_Status decodes the example strictly and compares it with what the server makes of it, so that a field that is
// added, renamed or removed shows here.
func TestDocs_Status(t *testing.T) {
	var example string
	for _, b := range blocks(t, "json") {
		if strings.Contains(b, `"parent_pid"`) {
			example = b
		}
	}
	var st control.Status
	d := json.NewDecoder(strings.NewReader(example))
	d.DisallowUnknownFields()
	if err := d.Decode(&st); err != nil {
		t.Fatal(err)
	}
	path, _ := serve(t, &controltest.Fake{State: st})
	_, got := ask(t, path, "GET", "/v1/status", "")
	var want bytes.Buffer
	if err := json.Compact(&want, []byte(example)); err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(got) != want.String() {
		t.Errorf("the server says\n%s\nand the document\n%s", got, want.String())
	}
}

// TestDocs_NamesEveryField looks for each field of the API in the document.
func TestDocs_NamesEveryField(t *testing.T) {
	text, err := os.ReadFile("../../docs/control-api.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		for typ.Kind() == reflect.Slice || typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct || typ == reflect.TypeFor[time.Time]() || seen[typ] {
			return
		}
		seen[typ] = true
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			if !regexp.MustCompile("[`\"]" + name + "[`\"]|\\." + name + "`").Match(text) {
				t.Errorf("the document does not name %s of %s", name, typ)
			}
			walk(typ.Field(i).Type)
		}
	}
	for _, v := range []any{control.Status{}, control.Event{}, control.Result{}, control.UpgradeRequest{}, control.ScaleRequest{}, control.StopRequest{}} {
		walk(reflect.TypeOf(v))
	}
}

// TestDocs_Curl runs every example in the document, in bash, with curl.
func TestDocs_Curl(t *testing.T) {
	examples := blocks(t, "sh")
	if len(examples) < 5 || !strings.HasPrefix(examples[0], "api() {") {
		t.Fatalf("the document's examples are %q", examples)
	}
	at := time.Date(2026, 1, 2, 3, 4, 4, 0, time.UTC)
	fake := &controltest.Fake{
		Events: []control.Event{
			{Time: at, Kind: control.KindUpgrade, Generation: 3, State: "starting"},
			{Time: at.Add(time.Second), Kind: control.KindUpgrade, Generation: 3, State: "ready", Ready: 1, Total: 1},
		},
		Outcome: control.Result{OK: true, Generation: 3, Revision: 1, TookSeconds: 1.25},
	}
	path, end := serve(t, fake)
	var calls []string
	for _, example := range examples[1:] {
		cmd := exec.Command("bash", "-c", examples[0]+example)
		cmd.Env = append(os.Environ(), "SOCKET="+path)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(stdout)
		var out []byte
		if strings.Contains(example, "/v1/events") { // which does not end before gapless does
			for range fake.Events {
				l, err := lines.ReadBytes('\n')
				if err != nil {
					t.Error(err)
				}
				out = append(out, l...)
			}
			end()
		}
		rest, err := io.ReadAll(lines)
		if out = append(out, rest...); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil || stderr.Len() > 0 {
			t.Fatalf("%s: %v\n%s%s", example, err, out, stderr.Bytes())
		}
		if strings.Contains(string(out), `"error"`) {
			t.Errorf("%s says %s", example, out)
		}
		if strings.Contains(example, "wait_drained") {
			if !slices.Contains(blocks(t, "json"), string(out)) {
				t.Errorf("%s says\n%s\nand the document does not", example, out)
			}
		}
		calls = append(calls, fake.TakeCalls()...)
	}
	want := []string{"status", "upgrade {WaitDrained:true}", "reload {}", "scale {Workers:4}", "stop {Now:true}"}
	if !slices.Equal(calls, want) {
		t.Errorf("the examples asked for %q, want %q", calls, want)
	}
}

// TestDocs_Error compares the example of an error.
func TestDocs_Error(t *testing.T) {
	path, _ := serve(t, &controltest.Fake{})
	_, got := ask(t, path, "POST", "/v1/scale", `{"workers": 0}`)
	if !slices.Contains(blocks(t, "json"), got) {
		t.Errorf("the document does not show %s", got)
	}
}
