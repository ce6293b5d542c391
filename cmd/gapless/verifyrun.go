package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"time"

	"gapless/internal/verify"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"
)

// ownFlags are flags of run that verify sets itself for the gapless that it starts.
var ownFlags = []string{"control", "pid-file"}

// runArgs are the flags of run that the command line has, for the gapless that is started. What comes from the
// environment or a file comes from there again.
func (c *verifyCmd) runArgs(node *kong.Node) []string {
	var args []string
	listens := false
	for _, flag := range runFlags(node) {
		if slices.Contains(ownFlags, flag.Name) {
			continue
		}
		from := c.Flags.settings.origins[flag.Name].rank
		if slices.Contains([]string{"host", "port", "listen"}, flag.Name) {
			listens = listens || from > byDefault
		}
		if from == byFlag {
			args = append(args, flagArgs(flag.Name, flag.Target)...)
		}
	}
	if !listens {
		args = append(args, "--port=0")
	}
	return args
}

// flagArgs writes a flag as it stands on a command line.
func flagArgs(name string, v reflect.Value) []string {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return nil
		}
		v = v.Elem()
	}
	if v.Kind() != reflect.Slice {
		return []string{fmt.Sprintf("--%s=%v", name, v.Interface())}
	}
	var args []string
	for i := range v.Len() {
		args = append(args, fmt.Sprintf("--%s=%v", name, v.Index(i).Interface()))
	}
	return args
}

// startLimit is how long the server may take to serve: its own limit decides, and says why.
func (c *verifyCmd) startLimit() time.Duration {
	if c.Flags.StartTimeout <= 0 || c.Flags.BeforeStartTimeout <= 0 && len(c.Flags.BeforeStart) > 0 {
		return time.Hour
	}
	return c.Flags.StartTimeout + c.Flags.BeforeStartTimeout + 10*time.Second
}

// reportFiles are those that the report is written to. They are made before the run: what is learnt in minutes should
// not be lost to a directory that does not exist.
type reportFiles struct {
	files []*os.File
	write func(*verify.Report) error
}

func (c *verifyCmd) create() (*reportFiles, error) {
	all := &reportFiles{}
	var writers []func(*verify.Report) error
	for _, f := range []struct {
		flag, path string
		write      func(*verify.Report, io.Writer) error
	}{{"--junit", c.JUnit, (*verify.Report).WriteJUnit}, {"--html", c.HTML, (*verify.Report).WriteHTML}} {
		if f.path == "" {
			continue
		}
		file, err := os.Create(f.path)
		if err != nil {
			all.close()
			return nil, fmt.Errorf("%s: %w", f.flag, err)
		}
		all.files = append(all.files, file)
		writers = append(writers, func(r *verify.Report) error { return f.write(r, file) })
	}
	all.write = func(r *verify.Report) error {
		var errs []error
		for _, w := range writers {
			errs = append(errs, w(r))
		}
		for _, file := range all.files {
			errs = append(errs, file.Close())
		}
		all.files = nil
		return errors.Join(errs...)
	}
	return all, nil
}

// close closes what write has not.
func (f *reportFiles) close() {
	for _, file := range f.files {
		_ = file.Close() // the run itself has failed, and says why
	}
}

// columns is the width of a terminal.
func columns(w io.Writer) int {
	const usual = 80
	f, ok := w.(*os.File)
	if !ok {
		return usual
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col < 20 {
		return usual
	}
	return int(size.Col)
}
