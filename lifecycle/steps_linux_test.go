package lifecycle

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"gapless/internal/procfs"
	"gapless/internal/testwait"

	"go.uber.org/zap"
)

func TestRunSteps_InOrderInTheirDirectory(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	err = runSteps(t.Context(), []string{"pwd > out", `echo "$GREETING" >> out`, "echo last >> out; true | false || true"}, 0, dir,
		[]string{"PATH=" + os.Getenv("PATH"), "GREETING=hello world"}, nil, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(dir + "/out")
	if want := dir + "\nhello world\nlast\n"; string(data) != want {
		t.Errorf("they wrote %q, %v; want %q", data, err, want)
	}
}

func TestRunSteps_TheFirstFailureEndsThem(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct {
		name, step, want string
	}{
		{"a status", "exit 7", `previous step "exit 7" failed: exit status 7; mend it, or leave out --before-start`},
		{"a signal", "kill -SEGV $$", `failed: signal: segmentation fault`},
		{"no such command", "/no/such/migration", `previous step "/no/such/migration" failed: exit status 127`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := runSteps(t.Context(), []string{"true", tc.step, "touch " + dir + "/went-on"}, time.Minute, dir, os.Environ(), nil, zap.NewNop())
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %s", err, tc.want)
			}
			if _, err := os.Stat(dir + "/went-on"); err == nil {
				t.Error("the next step ran")
			}
		})
	}
	if err := runSteps(t.Context(), []string{"true"}, 0, dir+"/no", nil, nil, zap.NewNop()); err == nil || !strings.Contains(err.Error(), `previous step "true": `) {
		t.Errorf("a directory that is not there: %v", err)
	}
}

func TestRunSteps_EndsAllThatAStepStarted(t *testing.T) {
	for _, tc := range []struct {
		name  string
		limit time.Duration
		want  string
	}{
		{"in time", 300 * time.Millisecond, "not finished within --before-start-timeout 300ms"},
		{"when it is called off", 0, "the upgrade was aborted"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			// A child in the background, and one in a group of its own, neither of which would end by itself.
			step := "sleep 1000 & echo $! > one; setsid sleep 1000 & echo $! > two; touch started; wait"
			result := make(chan error, 1)
			began := time.Now()
			go func() { result <- runSteps(ctx, []string{step}, tc.limit, dir, os.Environ(), nil, zap.NewNop()) }()
			testwait.Until(t, "the step runs", func() bool { _, err := os.Stat(dir + "/started"); return err == nil })
			if tc.limit == 0 {
				cancel(errors.New("the upgrade was aborted"))
			}
			err := <-result
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "previous step ") {
				t.Errorf("got %v, want %s", err, tc.want)
			}
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("it took %v", took)
			}
			for _, name := range []string{"one", "two"} {
				data, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
				if err != nil {
					t.Fatal(err)
				}
				testwait.Until(t, "process "+name+" ends", func() bool {
					s, err := procfs.ReadStat(pid)
					return err != nil || s.Dead()
				})
			}
		})
	}
}
