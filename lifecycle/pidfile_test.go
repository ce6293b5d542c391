package lifecycle

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func pidIn(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestPIDFile_IsThereWhileTheParentLives(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gapless.pid")
	me := fmt.Sprintln(os.Getpid())
	p, err := lockPIDFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := pidIn(t, path); got != me {
		t.Errorf("it says %q, want %q", got, me)
	}
	if _, err := lockPIDFile(path); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("gapless runs already with pid %d; stop it", os.Getpid())) {
		t.Errorf("a second one: %v", err)
	}
	if got := pidIn(t, path); got != me {
		t.Errorf("the refusal left %q", got)
	}
	p.remove()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("it is left behind: %v", err)
	}
}

func TestPIDFile_AStaleOneIsTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gapless.pid")
	if err := os.WriteFile(path, []byte("4194304000\nand more\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := lockPIDFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer p.remove()
	if got := pidIn(t, path); got != fmt.Sprintln(os.Getpid()) {
		t.Errorf("it says %q", got)
	}
}

func TestPIDFile_NoneIsNone(t *testing.T) {
	p, err := lockPIDFile("")
	if err != nil {
		t.Fatal(err)
	}
	p.remove()
}

func TestPIDFile_ThatCannotBeWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "no", "gapless.pid")
	_, err := lockPIDFile(path)
	if want := "--pid-file " + path + ": no such file or directory; name a file in a directory that " + whoami() + " may write"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if _, err := lockPIDFile(t.TempDir()); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("a directory: %v", err)
	}
}

func TestPIDFile_ThatCannotBeFilled(t *testing.T) {
	p, err := lockPIDFile("/dev/full")
	if err == nil {
		p.f.Close()
		t.Error("nobody noticed")
	}
}

func TestPIDFile_OneOfManyWins(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gapless.pid")
	var wg sync.WaitGroup
	won := make(chan *pidFile, 20)
	for range cap(won) {
		wg.Go(func() {
			if p, err := lockPIDFile(path); err == nil {
				won <- p
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Fatalf("%d hold the lock", len(won))
	}
	(<-won).remove()
}

// A parent that ends removes the file while the next one waits for the lock on it: the next one must not end up with a
// lock on a file that has no name any more, next to a third one with the same path.
func TestPIDFile_TheNextParentHoldsTheFileThatIsThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gapless.pid")
	for range 200 {
		first, err := lockPIDFile(path)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { defer close(ended); first.remove() }()
		var next *pidFile
		for next == nil {
			next, _ = lockPIDFile(path) // refused as long as the first one lives
		}
		<-ended
		if third, err := lockPIDFile(path); err == nil {
			third.remove()
			next.remove()
			t.Fatal("two parents hold the same pid file")
		}
		next.remove()
	}
}
