package lifecycle

import (
	"syscall"
	"time"

	"gapless/internal/known"
	"gapless/upgrade"
	"gapless/workerpool"
)

// Config is what `gapless run` was asked to do. Each master reads it anew from the same command line and environment.
type Config struct {
	Version   string
	Workers   int
	Addresses []upgrade.Address // named
	Accept    upgrade.Mode
	Command   []string // empty: the built-in app
	Chdir     string   // "": where gapless was started

	Adapter string // adapter.Auto or adapter.Off ("" too)

	Readiness    workerpool.Readiness
	Settle       time.Duration
	StartTimeout time.Duration
	DrainTimeout time.Duration
	DrainExtra   time.Duration
	CloseSpread  time.Duration
	StopSignal   syscall.Signal
	Keep         time.Duration // the window after an upgrade, in which the old generation stays whole; 0: none

	// Preview is where connections reach the staged generation; its Name is that of the address which is previewed. No Addr: nowhere.
	Preview upgrade.Address

	BeforeStart        []string
	BeforeStartTimeout time.Duration
	AfterPromote       []string

	MaxMemory   int64         // of a worker, in bytes; 0: no limit
	MaxLifetime time.Duration // of a worker; 0: no limit
	Surge       int
	Probation   time.Duration
	Watchdog    time.Duration

	User, Group string
	NoFile      uint64   // 0: as many as are allowed
	EnvFiles    []string // read anew by each upgrade and reload
	Umask       *int
	Blocking    bool // the workers' sockets block in accept(2), for a command that knows no other way

	LogPrefix bool // each line of a worker with its slot and generation before it
	PIDFile   string
	Control   string // path of the control socket; "": the default
	LogFormat string // console or json
	LogLevel  string
	Notes     []known.Note // of the command, for the banner
	Banner    bool         // on a terminal: tell a person what runs and what to type
}
