"""Auth: root; decides who a login is (whom `accounts` knows). `auth` is the process."""
