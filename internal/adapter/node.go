package adapter

import (
	"regexp"
	"slices"
	"strings"

	"gapless/internal/adapter/nodejs"
)

// nodeKit has node load its file before the program, behind whatever the user has it load.
func nodeKit() kit {
	return kit{files: read(nodejs.Files, "."), environ: func(env []string, dir string) []string {
		for _, kv := range env {
			if options, ok := strings.CutPrefix(kv, "NODE_OPTIONS="); ok && confined(strings.Fields(options)) {
				return env
			}
		}
		return withList(env, "NODE_OPTIONS", " ", "--require="+dir+"/"+nodejs.Main, false)
	}}
}

var nodes = regexp.MustCompile(`^(node|nodejs)[0-9.]*$`)

// nodeTools start programs of node, or what else they are told to.
var nodeTools = []string{"npm", "npx", "pnpm", "pnpx", "yarn", "yarnpkg", "corepack", "nodemon", "ts-node", "tsx"}

// ofNode knows node and what is written in it. A confined node may not read the adapter, and would not even start.
func ofNode(name string, args []string) (Match, bool) {
	switch {
	case nodes.MatchString(name):
		return Match{Node, true}, !confined(args)
	case slices.Contains(nodeTools, name):
		return Match{Node, false}, true
	}
	return Match{}, false
}

// confined says whether node's permission model is asked for.
func confined(options []string) bool {
	return slices.ContainsFunc(options, func(o string) bool { return o == "--permission" || o == "--experimental-permission" })
}
