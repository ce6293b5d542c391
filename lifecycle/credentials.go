package lifecycle

import (
	"fmt"
	"os/user"
	"strconv"
)

// credentials are those of the workers, where they differ from gapless's own.
type credentials struct {
	uid, gid *int
	groups   []int
}

// resolveCredentials reads --user and --group: names or numbers. A user alone brings its groups.
func resolveCredentials(userName, groupName string) (credentials, error) {
	var c credentials
	if userName != "" {
		u, err := user.Lookup(userName)
		if err != nil {
			if u, err = user.LookupId(userName); err != nil {
				if _, numErr := strconv.Atoi(userName); numErr != nil {
					return c, fmt.Errorf("--user %s: there is no such user", userName)
				}
				u = &user.User{Uid: userName, Gid: userName} // a number without a name, as in containers
			}
		}
		uid, err := strconv.Atoi(u.Uid)
		if err != nil {
			return c, fmt.Errorf("--user %s: %w", userName, err)
		}
		gid, err := strconv.Atoi(u.Gid)
		if err != nil {
			return c, fmt.Errorf("--user %s: %w", userName, err)
		}
		c.uid, c.gid = &uid, &gid
		if ids, err := u.GroupIds(); err == nil {
			for _, id := range ids {
				if n, err := strconv.Atoi(id); err == nil {
					c.groups = append(c.groups, n)
				}
			}
		}
	}
	if groupName != "" {
		name := groupName
		if g, err := user.LookupGroup(groupName); err == nil {
			name = g.Gid
		}
		gid, err := strconv.Atoi(name)
		if err != nil {
			return c, fmt.Errorf("--group %s: there is no such group", groupName)
		}
		c.gid = &gid
	}
	return c, nil
}
