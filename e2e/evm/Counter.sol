// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity ^0.8.20;

/// What a contract makes.
contract Child {
    uint256 public immutable given;

    constructor(uint256 value) {
        given = value;
    }
}

/// Everything that the clients' tests need of a contract: storage, events, reverts of each kind, loops, children.
contract Counter {
    event Counted(address indexed by, uint256 indexed count, string note);
    error TooMuch(uint256 asked, uint256 most);

    uint256 public count;
    mapping(address => uint256) public given;
    bytes public blob;
    address public child;

    constructor(uint256 first) payable {
        count = first;
    }

    receive() external payable {}

    function add(uint256 more, string calldata note) external returns (uint256) {
        if (more > 1000) revert TooMuch(more, 1000);
        require(more != 0, "nothing to add");
        count += more;
        given[msg.sender] += more;
        emit Counted(msg.sender, count, note);
        return count;
    }

    function panic(uint256 zero) external view returns (uint256) {
        return count / zero;
    }

    function forever() external view {
        uint256 i;
        while (true) {
            unchecked {
                i++;
            }
        }
    }

    function giant(uint256 size) external pure {
        assembly {
            return(0, size)
        }
    }

    function spawn() external returns (address) {
        child = address(new Child(count));
        return child;
    }

    function fill(uint256 from, uint256 many) external {
        for (uint256 i = from; i < from + many; i++) {
            assembly {
                sstore(add(i, 0x100000), 1)
            }
        }
    }

    function pay(address payable to, uint256 wei_) external {
        (bool ok, ) = to.call{value: wei_}("");
        require(ok, "not paid");
    }
}
