# What Perl's Getopt::Long makes of argument lists, with the option table of nat-traverse 0.7.
#
# One JSON object a line on standard input:  {"arguments": [...], "posix": true or false}
# and one for each on standard output:       {"events": [[name, value], ...], "operands": [...]}
# An error is an event named "!" with its text. Each character of a string is one byte.

use strict;
use warnings;
use Getopt::Long;
use JSON::PP;

my $json = JSON::PP->new->ascii->canonical;

while (my $line = <STDIN>) {
    my $case = $json->decode($line);
    my @rest = @{ $case->{arguments} };
    utf8::downgrade($_) for @rest;    # bytes, as in a real @ARGV
    my @events;
    my $note = sub { push @events, ["$_[0]", "$_[1]"] };

    # Getopt::Long looks at the environment when it is told to return to its defaults.
    local $ENV{POSIXLY_CORRECT} = "";
    delete $ENV{POSIXLY_CORRECT} unless $case->{posix};
    Getopt::Long::Configure("default");
    local $SIG{__WARN__} = sub { my $text = $_[0]; chomp $text; push @events, ["!", $text] };
    Getopt::Long::GetOptionsFromArray(
        \@rest,
        "window=i" => $note,
        "timeout=i" => $note,
        "cmd=s" => $note,
        "quit-after-connect" => $note,
        "version" => $note,
        "help" => $note,
    );
    print $json->encode({ events => \@events, operands => \@rest }), "\n";
}
