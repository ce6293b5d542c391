package verify

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// killWait is how long what a deploy command leaves open is waited for after its end.
const killWait = 5 * time.Second

// DeployBy returns an upgrade that is a shell command, which is over when the command is. What it prints is told only if
// it fails. Its process group is killed when the time for it is over.
func DeployBy(command string) Act {
	return Act{Name: "deploy", Do: func(ctx context.Context) (Outcome, error) {
		cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
		var out tailWriter
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.WaitDelay = killWait
		ownGroup(cmd)
		if err := cmd.Run(); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return Outcome{}, fmt.Errorf("%s: %w%s", command, err, out.said())
		}
		return Outcome{}, nil
	}}
}

// tailWriter keeps the last lines of what is written to it.
type tailWriter struct{ text []byte }

const maxTail = 4096

func (t *tailWriter) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	if len(t.text) > 2*maxTail {
		t.text = append([]byte(nil), t.text[len(t.text)-maxTail:]...)
	}
	return len(p), nil
}

// said is the last line, to stand behind an error.
func (t *tailWriter) said() string {
	lines := bytes.Split(bytes.TrimSpace(t.text), []byte("\n"))
	if last := strings.TrimSpace(string(lines[len(lines)-1])); last != "" {
		return ": " + last
	}
	return ""
}
